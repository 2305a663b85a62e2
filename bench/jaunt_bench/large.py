# SPDX-License-Identifier: Apache-2.0
"""Large guests: what the pause costs beside what was copied before, and beside memory not in use."""
from . import machine, modes as every_mode
from .machine import GIB

# Streams this fast take 4.3 s for a round of 4 GiB, in which this guest writes 120 000 pages.
ROUND_RATE = '1GB/s'
GUEST = 'random:ws=50%,rate=30000'
LEAST_DIRTY = 100000
PAGE = 4096


def _outstanding(migration):
  """Pages that were dirty when the rounds ended."""
  return migration.moved['decisions'][-1]['dirty_bytes'] / PAGE


def hybrid(bench):
  """Downtime of hybrid at 8 GiB with 100 000 pages outstanding, and at 2 GiB, beside post-copy."""
  machine.require_memory(10 * GIB, 'a guest of 8 GiB, half of it used')
  sizes = (1, 2) if bench.quick else (2, 8)
  times = {size: bench.figure(f'downtime of hybrid, {size} GiB', 'us', floor='post-copy',
                              most=2 if size == sizes[-1] else None) for size in sizes}
  dirty = {size: bench.figure(f'  pages outstanding, {size} GiB', 'pages',
                              least=LEAST_DIRTY if size == 8 else None) for size in sizes}
  copied = {size: bench.figure(f'  pages copied before, {size} GiB', 'pages') for size in sizes}
  for _ in bench.rounds(3):
    for size in sizes:
      with machine.awake():
        post = bench.migrate(size * GIB, ('--mode', 'post-copy'), workload=GUEST)
        both = bench.migrate(size * GIB, ('--mode', 'hybrid', '--max-rounds', '1', '--explain',
                                          '--bandwidth', ROUND_RATE), workload=GUEST)
      times[size].add(both.moved['downtime_us'], post.moved['downtime_us'])
      dirty[size].add(_outstanding(both))
      copied[size].add(both.moved['pages']['copied'])


def terabyte(bench):
  """A sparse guest of 1 TiB that uses 1 GiB, in every mode, beside one of 1 GiB."""
  large = (64 if bench.quick else 1024) * GIB
  machine.require_memory(10 * GIB, 'the kernel\'s own memory for two such guests')
  down, total = {}, {}
  for mode in every_mode.ALL:
    down[mode] = bench.figure(f'{large // GIB} GiB, {mode}: downtime', 'us', floor='1 GiB', most=3)
    total[mode] = bench.figure(f'{large // GIB} GiB, {mode}: total', 's', most=10)
  for _ in bench.rounds(3):
    for mode in bench.cells(list(every_mode.ALL)):
      used = GIB * 9 // 10
      named = {'working_set': used, 'workload': f'random:ws={used},rate=5000'}
      small = bench.migrate(GIB, ('--mode', mode), **named)
      sparse = bench.migrate(large, ('--mode', mode), **named)
      down[mode].add(sparse.moved['downtime_us'], small.moved['downtime_us'])
      total[mode].add(sparse.moved['total_ms'] / 1e3)
