# SPDX-License-Identifier: Apache-2.0
"""Every mode over cells of RAM, dirty rate and bandwidth: what each costs the guest."""
import statistics

from . import machine, modes as every_mode
from .machine import GIB, MIB

PAGE = 4096
NEAR = 1.1
LINK = 1500000000  # loopback: demand faults go beside the limit of the streams
ROUND_TRIP_US = 30  # where no run tells
TOUCHES = 1  # of the workload `random`: a page for each operation, which is written


def _cells(quick):
  """Bytes of RAM, operations a second of the guest (0: as many as it can; each writes a page), and
  bytes a second that the streams may send."""
  if quick:
    return [(256 * MIB, 5000, 500000000)]
  # Pre-copy of 1 GiB at full rate sends it eight times: under 125 MB/s for 37 s.
  return [(memory, rate, bandwidth) for memory, slow in ((256 * MIB, 125000000), (GIB, 250000000))
          for bandwidth in (slow, 500000000) for rate in (2000, 20000, 0)]


def _name(memory, rate, bandwidth):
  return (f'{memory / GIB:g} GiB, {f"{rate * PAGE / 1e6:.0f} MB/s" if rate else "full rate"}, '
          f'{bandwidth / 1e6:.0f} MB/s')


def _simulated(programs, cell, lines):
  """What the simulator expects of auto for that guest; it knows of the guest at full rate what that
  did before it was moved."""
  memory, rate, bandwidth = cell
  usual = statistics.median(line['usual_per_ms'] for line in lines) * 1e3
  said = every_mode.simulate(programs, ram=memory, data=memory // 2, working_set=memory // 2,
                             dirty_rate=int((rate or usual) * PAGE), touches=TOUCHES,
                             bandwidth=LINK, limit_bandwidth=bandwidth,
                             max_rounds=every_mode.MAX_ROUNDS, cpus=_source_cpus(programs), paced=bool(rate),
                             round_trip_us=_round_trip_us(lines))
  return said['auto']


def _source_cpus(programs):
  """That the guest writes on before it is moved."""
  return len(programs.placement.source or machine.cpus())


def _round_trip_us(lines):
  """As the migrations measured it."""
  found = [line['round_trip_us'] for line in lines if line.get('round_trip_us')]
  return int(statistics.median(found)) if found else ROUND_TRIP_US


def _row(mode, of):
  return [mode] + [f'{statistics.median(line[key] for line in of):,.1f}'
                   for key in ('downtime_ms', 'waited_ms', 'tracking_ms', 'total_ms', 'rounds',
                               'cost_ms')] + [str(len(of))]


def _table(lines_of):
  rows = [('mode', 'downtime', 'waits', 'tracking', 'total', 'rounds', 'cost, ms', 'runs')]
  rows += [_row(mode, of) for mode, of in lines_of.items()]
  widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
  for row in rows:
    print('    ' + row[0].ljust(widths[0]) +
          ''.join('  ' + cell.rjust(width) for cell, width in zip(row[1:], widths[1:])))


def _markdown(row):
  """A line of the table in docs/policy.md."""
  return '| ' + ' | '.join(row) + ' |'


def _judge(bench, cell, lines):
  """The figures of a cell; whether auto is near the best there, or None: not all were measured."""
  of = {mode: [line for line in lines if line['mode'] == mode] for mode in every_mode.ALL}
  if not all(of.values()):
    return None
  print(f'  {_name(*cell)}')
  _table(of)

  def median(mode, key):
    return statistics.median(line[key] for line in of[mode])
  fixed = [mode for mode in every_mode.FIXED
           if median(mode, 'downtime_ms') <= every_mode.DOWNTIME_LIMIT_MS]
  best = min(fixed, key=lambda mode: median(mode, 'cost_ms'))
  auto = median('auto', 'cost_ms')
  bench.figure(f'auto: cost, {_name(*cell)}', 'ms', floor=best).add(auto, median(best, 'cost_ms'))
  said = _simulated(bench.programs, cell, lines)
  bench.figure(f'simulated: cost, {_name(*cell)}', 'ms', floor='measured', most=1.25,
               least=0.75).add(said['cost_ms'], auto)
  bench.figure(f'simulated: total, {_name(*cell)}', 'ms', floor='measured', most=1.25,
               least=0.75).add(said['total_ms'], median('auto', 'total_ms'))
  near, share = auto / median(best, 'cost_ms'), said['cost_ms'] / auto
  print('    ' + _markdown([_name(*cell)] + [f'{median(mode, "cost_ms"):,.1f}' for mode in of] + [
    f'{near:.2f}' if near <= NEAR else f'**{near:.2f}**',
    f'{said["cost_ms"]:,.1f} ({share:.2f})' if 0.75 <= share <= 1.25
    else f'{said["cost_ms"]:,.1f} (**{share:.2f}**)']))
  return near <= NEAR


def _count(bench, cell, mode):
  """Runs so far: a series that was cut goes on where it was."""
  return sum(1 for line in bench.recorded('modes')
             if tuple(line['cell']) == cell and line['mode'] == mode)


def _run(bench, cell, mode):
  memory, rate, bandwidth = cell
  bench.say(f'{_name(*cell)}: {mode}')
  one = every_mode.run(bench.programs, mode, memory, memory // 2, ('--bandwidth', str(bandwidth)),
                       workload=f'random:ws=50%,rate={rate}')
  bench.record('modes', cell=cell, **one.json())


def modes(bench):
  """What each mode costs the guest, over cells of RAM, dirty rate and bandwidth; auto beside the best
  fixed mode that keeps the downtime limit, and beside what the simulator expects of it."""
  machine.require_memory(3 * GIB, 'guests of 1 GiB')
  cells = _cells(bench.quick)
  for number in bench.rounds(5):
    for cell in bench.cells(cells):
      for mode in every_mode.ALL:
        if _count(bench, cell, mode) <= number:
          _run(bench, cell, mode)
  lines = bench.recorded('modes')
  near = [_judge(bench, cell, [line for line in lines if tuple(line['cell']) == cell])
          for cell in cells]
  near = [one for one in near if one is not None]
  bench.figure('cells in which auto is within 10 % of the best', 'share',
               least=0.9).add(sum(near) / len(near))
