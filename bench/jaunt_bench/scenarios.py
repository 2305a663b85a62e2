# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how. Each scenario is a function that takes a Bench and fills figures.

In every scenario what is compared alternates: a round measures each side once, and rounds follow
each other, so that a machine that slows down for a while does it to both.
"""
import json
import os
import time

from . import machine
from .cells import modes
from .commands import Failed, Migration
from .figures import Figure
from .far import far
from .large import hybrid, terabyte
from .machine import GIB, MIB
from .qemu import qemu, qemu_capped, qemu_hybrid, qemu_post_copy
from .rdma import rdma
from .tracking import tracking

PAGE = 4096
POPULATED = 0.98  # of the working set, as seen from outside: enough to begin
FAULTS_END_S = 120
QEMU = ('qemu', 'qemu_post_copy', 'qemu_capped', 'qemu_hybrid')


class Bench:
  """What a scenario has to work with."""

  def __init__(self, programs, runs, quick, say, cells=None, series=None):
    self.programs, self.runs, self.quick, self.say = programs, runs, quick, say
    self.chosen, self.series = cells, series
    self.figures = []
    self.reports = []  # everything that the programs reported, in order

  def figure(self, *arguments, **named):
    figure = Figure(*arguments, **named)
    self.figures.append(figure)
    return figure

  def rounds(self, usual):
    count = self.runs or (2 if self.quick else usual)
    for number in range(count):
      self.say(f'round {number + 1} of {count}')
      self.keep('load average', os.getloadavg()[0])
      yield number

  def keep(self, what, report):
    self.reports.append({'what': what, 'report': report})
    return report

  def cells(self, all_cells):
    """Those that were asked for (--cells), of a scenario whose cells are measured one by one."""
    first, last = self.chosen or (1, len(all_cells))
    return all_cells[first - 1:last]

  def record(self, scenario, **figures):
    """One run of a cell, kept in the file of the series (--series) if there is one."""
    line = {'scenario': scenario, **figures}
    self.keep('run', line)
    if self.series:
      with open(self.series, 'a', encoding='utf-8') as file:
        file.write(json.dumps(line) + '\n')

  def recorded(self, scenario):
    """All runs so far: those of the series, else those of this call."""
    lines = [kept['report'] for kept in self.reports if kept['what'] == 'run']
    if self.series and os.path.exists(self.series):
      with open(self.series, encoding='utf-8') as file:
        lines = [json.loads(line) for line in file]
    return [line for line in lines if line['scenario'] == scenario]

  def floor(self, name, *words):
    return self.keep('floor ' + name, self.programs.floor(name, *words))

  def migrate(self, memory, options=(), watch=None, **named):
    """A whole migration; `watch` is called while it runs. Returns the object with all it reported."""
    working_set = named.pop('working_set', memory // 2)
    if '--mode' not in options:
      options = ('--mode', 'post-copy', *options)
    with Migration(self.programs, memory, **named) as migration:
      migration.boot(int(working_set * POPULATED))
      migration.listen()
      machine.warm(working_set)
      migration.begin(*options)
      migration.watched = watch(migration) if watch else None
      migration.finish()
      self.keep('migrate', migration.moved)
      self.keep('receive', migration.received)
      return migration


def _touches(migration):
  return migration.received['guest']['touch_latency_us']


def _dwell_us(migration):
  """What the guest did between two touches when all of its memory was there."""
  rate = migration.received['guest'].get('operations_per_s_before') or 0
  return migration.vcpus * 1e6 / rate if rate else 0


# --- Downtime -------------------------------------------------------------------------------------


def downtime(bench):
  """Downtime at several sizes of RAM, beside the vCPU save, restore and round trips it needs, with
  CPUs kept awake; and beside that with CPUs that sleep when they have nothing to do."""
  sizes = (1, 2) if bench.quick else (1, 4, 8)
  machine.require_memory(int(sizes[-1] * 1.2 * GIB), f'a guest of {sizes[-1]} GiB, half of it used')
  times = {size: bench.figure(f'downtime, {size} GiB', 'us', most=1000) for size in sizes}
  ratios = {size: bench.figure(f'downtime, {size} GiB, of its parts', 'us', most=3,
                               floor='save, restore, 2 round trips') for size in sizes}
  gaps = {size: bench.figure(f'gap the guest saw, {size} GiB', 'us',
                             note='by its own TSC; includes its first faults') for size in sizes}
  bare = {size: bench.figure(f'downtime, {size} GiB, of the least', 'us',
                             floor='bare switchover') for size in sizes}
  sleepy = {size: bench.figure(f'downtime, {size} GiB, CPUs may sleep', 'us',
                               floor='save, restore, 2 round trips') for size in sizes}
  pin = bench.programs.placement.floor_options()
  for _ in bench.rounds(5):
    for size in sizes:
      with machine.awake():
        migration = bench.migrate(size * GIB)
        floor = bench.floor('switchover', '--vcpus', 2, *pin)
      times[size].add(migration.moved['downtime_us'])
      ratios[size].add(migration.moved['downtime_us'], migration.moved['downtime_floor_us'])
      bare[size].add(migration.moved['downtime_us'], floor['floor_us'])
      gaps[size].add(migration.received['guest']['arrival_gap_us'])
      migration = bench.migrate(size * GIB)
      sleepy[size].add(migration.moved['downtime_us'], migration.moved['downtime_floor_us'])
  medians = [times[size].median for size in sizes]
  bench.figure('largest downtime over smallest', 'x', most=1.5).add(max(medians) / min(medians))


# --- Demand faults --------------------------------------------------------------------------------


def _until_demanded(pages):
  """Waits until the guest has fetched its whole working set, then lets the rest be pushed."""
  def watch(migration):
    deadline = time.monotonic() + FAULTS_END_S
    last, since = -1, time.monotonic()
    while time.monotonic() < deadline:
      state = migration.target_state()
      demanded = (state.get('pages') or {}).get('demanded', 0)
      now = time.monotonic()
      if demanded != last:
        last, since = demanded, now
      # The last few are reached only by chance, and some lie outside the working set.
      if demanded >= pages or (demanded > pages * 0.9 and now - since > 1):
        break
      if migration.mover.child.poll() is not None:
        raise Failed(f'the migration ended before the faults did: {migration.mover.last_words()}')
      time.sleep(0.25)
    else:
      raise Failed(f'only {last} of {pages} pages were demanded within {FAULTS_END_S} s')
    migration.push_on()
    return last
  return watch


def fault(bench):
  """Latency of demand faults as the guest sees it, nothing pushed, beside the bare minimum."""
  memory = (256 * MIB) if bench.quick else GIB
  working_set = memory // 2
  pin = bench.programs.placement.fault_floor_options()
  half = bench.figure('fault, no push: p50', 'us', floor='bare fault', most=1.5)
  tail = bench.figure('fault, no push: p99', 'us', floor='bare fault')
  for number in bench.rounds(10):
    migration = bench.migrate(memory, ('--push', 'off'), _until_demanded(working_set // PAGE))
    jaunt = _touches(migration)
    floor = bench.floor('fault', '--vcpus', 2, '--working-set', working_set, '--seed', number + 1,
                        '--dwell-us', f'{_dwell_us(migration):.3f}', *pin)['touch_latency_us']
    half.add(jaunt['p50'], floor['p50'])
    tail.add(jaunt['p99'], floor['p99'])


def push(bench):
  """Tail of demand faults while everything is pushed, beside the bare fault beside a stream."""
  memory = (512 * MIB) if bench.quick else 2 * GIB
  working_set = memory // 2
  pin = bench.programs.placement.fault_floor_options()
  half = bench.figure('fault, push on: p50', 'us', floor='bare, beside a stream')
  tail = bench.figure('fault, push on: p99', 'us', floor='bare, beside a stream', most=2)
  last = bench.figure('fault, push on: p99.9', 'us', floor='bare, beside a stream')
  nice = bench.figure('fault, push on: p99, stricter', 'us', floor='the same, stream at nice 19',
                      note='what a stream that yields leaves of the tail')
  rate = bench.figure('push beside faults', 'GB/s', floor='stream beside bare faults')
  for number in bench.rounds(10):
    migration = bench.migrate(memory)
    jaunt = _touches(migration)
    words = ['fault', '--push', '--vcpus', 2, '--working-set', working_set, '--bulk', working_set,
             '--seed', number + 1, '--dwell-us', f'{_dwell_us(migration):.3f}', *pin]
    report = bench.floor(*words)
    floor = report['touch_latency_us']
    yielding = bench.floor(*words, '--bulk-nice', 19)['touch_latency_us']
    if not jaunt['count']:
      raise Failed('the guest waited for no page at all: nothing to compare')
    half.add(jaunt['p50'], floor['p50'])
    tail.add(jaunt['p99'], floor['p99'])
    nice.add(jaunt['p99'], yielding['p99'])
    last.add(jaunt['p999'], floor['p999'])
    rate.add(migration.moved['throughput_bytes_per_s'] / 1e9, report['bulk_gb_per_s'])


def cap(bench):
  """Demand faults beside streams that are limited to 125 MB/s, beside those with nothing pushed."""
  memory = (256 * MIB) if bench.quick else 512 * MIB
  half = bench.figure('fault, streams at 125 MB/s: p50', 'us', floor='nothing pushed', most=1.5)
  tail = bench.figure('fault, streams at 125 MB/s: p99', 'us', floor='nothing pushed', most=4)
  rate = bench.figure('what streams and faults brought', 'MB/s')
  for _ in bench.rounds(5):
    idle = _touches(bench.migrate(memory, ('--push', 'off'), _until_demanded(memory // 2 // PAGE)))
    migration = bench.migrate(memory, ('--bandwidth', '125MB/s'))
    capped = _touches(migration)
    half.add(capped['p50'], idle['p50'])
    tail.add(capped['p99'], idle['p99'])
    rate.add(migration.moved['throughput_bytes_per_s'] / 1e6)


# --- Distance -------------------------------------------------------------------------------------


def _fault_rate(pages, window_s):
  """Faults a second over a window, in which the working set must not run out."""
  def watch(migration):
    first = last = None
    deadline = time.monotonic() + FAULTS_END_S
    while time.monotonic() < deadline:
      state = migration.target_state()
      demanded = (state.get('pages') or {}).get('demanded', 0)
      now = time.monotonic()
      if demanded > pages * 0.8:
        break
      if demanded and not first:
        first = (now, demanded)
      elif demanded:
        last = (now, demanded)
        if now - first[0] > window_s:
          break
      if migration.mover.child.poll() is not None:
        raise Failed(f'the migration ended early: {migration.mover.last_words()}')
      time.sleep(0.1)
    if not last:
      raise Failed('the working set ran out before the rate of faults could be told')
    migration.push_on()
    return (last[1] - first[1]) / (last[0] - first[0])
  return watch


def distance(bench):
  """Rate of demand faults over a round trip of 1 ms, by the number of threads that fault."""
  memory = (512 * MIB) if bench.quick else GIB
  pages = memory // 2 // PAGE
  rates = {threads: bench.figure(f'faults over 1 ms, {threads} vCPU', '/s')
           for threads in (1, 4, 8, 32)}
  eight = bench.figure('8 threads', '/s', floor='1 thread', least=4)
  many = bench.figure('32 threads', '/s', floor='4 threads', least=1)
  for _ in bench.rounds(5):
    rate = {}
    for threads in rates:
      migration = bench.migrate(memory, ('--push', 'off'), _fault_rate(pages, 2), vcpus=threads,
                                proxy=('--delay-us', '500'))
      rate[threads] = migration.watched
      rates[threads].add(rate[threads])
      bench.keep('rate', {'threads': threads, 'faults_per_s': rate[threads]})
    eight.add(rate[8], rate[1])
    many.add(rate[32], rate[4])


# --- Bulk -----------------------------------------------------------------------------------------


def bulk(bench):
  """Throughput of one stream into warm memory, guest idle, beside receiving without installing."""
  size = (512 * MIB) if bench.quick else 2 * GIB
  working_set = size * 9 // 10
  machine.require_memory(int(size * 3.2), 'moving %d MiB' % (size // MIB))
  pin = bench.programs.placement.floor_options()
  figure = bench.figure('bulk, one stream, idle guest', 'GB/s', floor='receive, install nothing',
                        least=0.6)
  for _ in bench.rounds(5):
    migration = bench.migrate(size, ('--streams', '1'), working_set=working_set,
                              workload=f'idle:ws={working_set}')
    floor = bench.floor('ceiling', '--bytes', size, '--runs', 1, *pin)
    figure.add(migration.moved['throughput_bytes_per_s'] / 1e9, floor['gb_per_s'])


# --- Memory ---------------------------------------------------------------------------------------


def memory(bench):
  """Memory of the engine beyond guest RAM, by its own account and by that of the kernel."""
  sizes = (1,) if bench.quick else (1, 8)
  machine.require_memory(int(sizes[-1] * 1.2 * GIB), f'a guest of {sizes[-1]} GiB, half of it used')
  figures = {}
  for size in sizes:
    for side in ('source', 'target'):
      figures[size, side] = (
        bench.figure(f'engine memory, {side}, {size} GiB', 'MiB', most=1,
                     floor='32 MiB + 0.02 % of RAM'),
        bench.figure(f'RssAnon grown, {side}, {size} GiB', 'MiB',
                     floor='32 MiB + 0.02 % of RAM', note='of the process, VM and command included'))
  for _ in bench.rounds(3):
    for size in sizes:
      limit = 32 + size * GIB * 0.0002 / MIB
      migration = bench.migrate(size * GIB)
      for side, report in (('source', migration.moved), ('target', migration.received)):
        own, kernel = figures[size, side]
        own.add(report['engine_bytes'] / MIB, limit)
        kernel.add(migration.grown(side) / MIB, limit)


def sparse(bench):
  """A guest of 256 GiB that uses 64 MiB of it."""
  size = (64 if bench.quick else 256) * GIB
  machine.require_memory(4 * GIB, 'the kernel\'s own memory for two such guests')
  total = bench.figure(f'{size // GIB} GiB, almost all holes: total', 's', most=10)
  down = bench.figure(f'{size // GIB} GiB, almost all holes: downtime', 'us')
  used = bench.figure('memory of the target beside it', 'MiB', most=1024,
                      note='RssShmem: what was allocated of the guest')
  for _ in bench.rounds(3):
    def watch(migration):
      # What is left when it is over; the peak is the end.
      migration.mover.wait(FAULTS_END_S)
      return machine.process_memory(migration.target.pid).get('RssShmem', 0)
    migration = bench.migrate(size, working_set=64 * MIB, workload=f'random:ws={64 * MIB}',
                              watch=watch)
    total.add(migration.moved['total_ms'] / 1000)
    down.add(migration.moved['downtime_us'])
    used.add(migration.watched / MIB)


# --- Installing -----------------------------------------------------------------------------------


def install(bench):
  """Ways of getting received bytes into memory: keeps the engine's choice honest. No VM runs."""
  size = (256 * MIB) if bench.quick else GIB
  sizes = ['4k']
  with open('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages') as file:
    if int(file.read()) * 2 * MIB >= size:
      sizes.append('2m')
  ways = {}
  for _ in bench.rounds(5):
    for pages in sizes:
      report = bench.floor('install', '--bytes', size, '--page-size', pages, '--runs', 1)
      ceiling = report['ways']['receive']['gb_per_s']
      for way, result in report['ways'].items():
        if way == 'receive':
          continue
        if (pages, way) not in ways:
          ways[pages, way] = bench.figure(f'install {pages} pages: {way}', 'GB/s',
                                          floor='receive, install nothing')
        ways[pages, way].add(result['gb_per_s'], ceiling)


# Where a fault's latency is measured, the vCPUs keep to themselves: a stream on their CPU would
# make a tail of whole time slices, the bare floor's even more than Jaunt's.
PLACEMENTS = {'fault': 'apart', 'push': 'apart', 'cap': 'apart',
              **dict.fromkeys(QEMU, 'any')}

# Long, or of no migration with the default workload.
ON_REQUEST = ('far', 'terabyte', 'hybrid', 'install', 'modes', 'rdma', 'tracking', *QEMU)

ALL = {scenario.__name__: scenario
       for scenario in (downtime, fault, push, cap, distance, far, bulk, memory, sparse, terabyte,
                        hybrid, install, modes, rdma, tracking,
                        qemu, qemu_post_copy, qemu_capped, qemu_hybrid)}
