# SPDX-License-Identifier: Apache-2.0
"""What dirty tracking costs a guest, tracker by tracker."""
from .commands import Failed

# Half of the memory is the working set: a guest of more needs longer to have touched all of it again.
MEMORY = '512M'
SECONDS = 120


def _run(bench, tracker):
  """One guest before, during and after; None where the kernel lacks it."""
  process = bench.programs.start([bench.programs.bench('jaunt-bench-tracking'), '--tracker', tracker,
                                  '--memory', '128M' if bench.quick else MEMORY, '--vcpus', '2'])
  code = process.wait(SECONDS)
  if code and 'soft-dirty' in process.last_words():
    bench.say(f'{tracker}: {process.last_words()}')
    return None
  if code:
    raise Failed(f'{process.name()}: exit code {code}: {process.last_words()}')
  return bench.keep('tracking', process.report())


def tracking(bench):
  """Throughput of a guest while its writes are tracked, and after that, to before; each tracker."""
  figures = {}
  for _ in bench.rounds(5):
    for tracker in ('log', 'ring', 'write-protect', 'soft-dirty'):
      report = _run(bench, tracker)
      if not report:
        continue
      for key, name, unit, factor in (
          ('ratio_during', 'guest during rounds, to before', 'x', 1),
          ('ratio_right_after', 'in the first 0.2 s after it is off', 'x', 1),
          ('ratio_after', 'in the next 2 s', 'x', 1),
          ('ratio_settled', 'after 6 s', 'x', 1),
          ('collect_us', 'a collect while it runs', 'ms', 1e-3),
          ('pages', 'dirty pages it finds', 'pages', 1),
          ('paused_collect_us', 'the last collect, in the pause', 'ms', 1e-3),
          ('start_us', 'starting', 'ms', 1e-3), ('stop_us', 'stopping', 'ms', 1e-3)):
        if (tracker, key) not in figures:
          figures[tracker, key] = bench.figure(f'{tracker}: {name}', unit)
        figures[tracker, key].add(report[key] * factor)
