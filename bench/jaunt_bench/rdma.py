# SPDX-License-Identifier: Apache-2.0
"""Demand faults, bulk and the source's CPU over RDMA and TCP, beside bare READs."""
import json
import os
import subprocess

from . import machine
from .commands import Failed

MEASURE = os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', '..', 'tests', 'vm', 'rdma',
                       'measure')
NOT_HERE = 77
ROUND_S = 900


def _rounds(bench, count, faults, clock):
  """What tests/vm/rdma/measure prints, a dictionary for each round."""
  words = [MEASURE, '--build', bench.programs.build, '--rounds', str(count), '--faults', str(faults),
           *clock]
  bench.say(' '.join(words[5:]))
  try:
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=count * ROUND_S, check=False)
  except subprocess.TimeoutExpired as error:
    raise Failed(f'tests/vm/rdma/measure: not done within {count * ROUND_S} s') from error
  said = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
  if done.returncode == NOT_HERE:
    raise machine.NotHere(said)
  if done.returncode:
    raise Failed(f'tests/vm/rdma/measure: {said}')
  return [json.loads(line) for line in done.stdout.splitlines()]


def _measure(bench, clock, by):
  touch = bench.figure(f'fault p50, guest, rdma{by}', 'us', 'bare READ and COPY', most=1.3)
  touch_tcp = bench.figure(f'fault p50, guest, tcp{by}', 'us', 'bare READ and COPY')
  less = bench.figure(f'fault p50, guest, rdma{by}', 'us', 'the same over tcp', most=1)
  tail = bench.figure(f'fault p99, guest, rdma{by}', 'us', 'bare READ and COPY')
  tail_tcp = bench.figure(f'fault p99, guest, tcp{by}', 'us', 'bare READ and COPY')
  engine = {scheme: bench.figure(f'fault p50, engine, {scheme}{by}', 'us')
            for scheme in ('rdma', 'tcp')}
  moved = bench.figure(f'bulk, rdma{by}', 'MB/s', 'bare READs, not installed', least=0.8)
  installed = bench.figure(f'bulk, rdma{by}', 'MB/s', 'bare READs, installed')
  moved_tcp = bench.figure(f'bulk, tcp{by}', 'MB/s', 'bare READs, not installed')
  cpu = bench.figure(f'CPU of the source, a fault, rdma{by}', 'us', most=1)
  cpu_tcp = bench.figure(f'CPU of the source, a fault, tcp{by}', 'us')
  count = bench.runs or (1 if bench.quick else 3)
  for found in _rounds(bench, count, 8000 if bench.quick else 20000, clock):
    bench.keep('rdma' + by, found)
    floor, over, tcp = found['floor'], found['rdma'], found['tcp']
    bare = floor['touch_latency_us']
    touch.add(over['touch_p50_us'], bare['p50'])
    touch_tcp.add(tcp['touch_p50_us'], bare['p50'])
    less.add(over['touch_p50_us'], tcp['touch_p50_us'])
    tail.add(over['touch_p99_us'], bare['p99'])
    tail_tcp.add(tcp['touch_p99_us'], bare['p99'])
    for scheme, figure in engine.items():
      figure.add(found[scheme]['engine_p50_us'])
    moved.add(over['bulk_mb_per_s'], floor['bulk_gb_per_s'] * 1e3)
    installed.add(over['bulk_mb_per_s'], floor['bulk_installed_gb_per_s'] * 1e3)
    moved_tcp.add(tcp['bulk_mb_per_s'], floor['bulk_gb_per_s'] * 1e3)
    cpu.add(over['source_cpu_us_per_fault'])
    cpu_tcp.add(tcp['source_cpu_us_per_fault'])


def rdma(bench):
  """READs, Jaunt over RDMA and over TCP in one nested machine with soft RoCE, once by a clock that counts
  instructions and once by the host's; with JAUNT_BENCH_RDMA=ADDRESS on this host's device of that
  address."""
  address = os.environ.get('JAUNT_BENCH_RDMA')
  if address:
    _measure(bench, ['--address', address], '')
    return
  for clock in ('instructions', 'host'):
    _measure(bench, ['--clock', clock], f', by {clock}')
