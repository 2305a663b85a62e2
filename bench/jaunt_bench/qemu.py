# SPDX-License-Identifier: Apache-2.0
"""A Linux guest in QEMU, moved by Jaunt and by QEMU itself in turn: the same guest all the while."""
import os
import socket
import statistics
import struct
import sys
import threading
import time

from . import machine
from .commands import Failed

ROOT = os.path.normpath(os.path.join(os.path.dirname(os.path.realpath(__file__)), '..', '..'))
sys.path[:0] = [os.path.join(ROOT, 'tests', folder) for folder in ('integration', 'vm/qemu')]

import migrating  # noqa: E402
import travel  # noqa: E402
from qemu import Shape  # noqa: E402

MIB = machine.MIB
PULSE_US = 500
SETTLE_S = 0.4  # of pulses before and behind a migration
CAP = 125000000
SO_TIMESTAMPNS = 35  # of Linux; the module does not know it
ATTEMPTS = 5
POST_COPY = ('postcopy-ram', 'postcopy-preempt')


class Pulses:
  """The guest's signs of life, by the kernel's clock when each arrived: a datagram from whichever
  QEMU it is in. Nobody's scheduling delays the time stamp."""

  def __init__(self):
    self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
    self.socket.bind(('127.0.0.1', 0))
    self.port = self.socket.getsockname()[1]
    self.moments = []
    self.ended = False
    threading.Thread(target=self._read, daemon=True).start()

  def _read(self):
    while not self.ended:
      try:
        _, said, _, _ = self.socket.recvmsg(16, 64)
      except OSError:
        return
      for level, kind, data in said:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
          seconds, nanoseconds = struct.unpack('qq', data)
          self.moments.append(seconds + nanoseconds / 1e9)

  def longest_gap(self, begin, end):
    """Seconds in which the guest did not work at all, within that time."""
    moments = [moment for moment in self.moments if begin <= moment <= end]
    if len(moments) < 2:
      raise Failed('the guest gives no signs of life')
    return max(later - sooner for sooner, later in zip(moments, moments[1:]))

  def close(self):
    self.ended = True
    self.socket.close()


class Hop:
  """One migration. Times are in milliseconds; moments are of the QEMUs' own events."""

  def __init__(self, way, total, source, target, gap, memory):
    access, due = memory['access'], memory['access_due']
    self.way, self.total, self.stall = way, total, gap * 1e3
    self.p99, self.worst = access['p99_us'] / 1e3, access['max_us'] / 1e3
    # While one access waits others that were due are not made. A guest that waits long and seldom
    # would look better for that, so they are counted as if they had been made and had waited.
    self.due = due['p99_us'] / 1e3
    stopped, runs = source.when('STOP'), target.when('RESUME')
    if not stopped or not runs:
      raise Failed(f'{way}: no STOP at the source, or no RESUME at the target')
    self.downtime = (runs - stopped) * 1e3
    # Each mark ends what its name says; what has no mark of its own counts with what follows it. In
    # post-copy QEMU tells neither when the device state was there nor when it was loaded.
    marks = [('prepare', source.when('MIGRATION', status='active', after=stopped)),
             ('save', source.when('MIGRATION', status='completed') or
              source.when('MIGRATION', status='postcopy-active')),
             ('load', target.when('MIGRATION', status='completed')), ('resume', runs)]
    self.phases, before = {}, stopped
    for name, moment in marks:
      if moment and stopped <= moment <= runs:
        self.phases[name], before = (moment - before) * 1e3, moment

  def json(self):
    return {'way': self.way, 'total_ms': self.total, 'downtime_ms': self.downtime,
            'longest_stall_ms': self.stall, 'access_p99_ms': self.p99,
            'access_due_p99_ms': self.due, 'access_worst_ms': self.worst,
            'downtime_phases_ms': self.phases}


class Track:
  """A guest that goes from QEMU to QEMU, always by the same way. Between its hops it is stopped: the
  others are measured then."""

  def __init__(self, bench, shape, way, move):
    self.bench, self.shape, self.way, self.move = bench, shape, way, move
    self.pulses = Pulses()
    self.site = migrating.Site(bench.programs.build)
    self.guest = None
    self.hops = []
    self.errors = self.errors_in_all = self.deaths = 0

  def boot(self):
    try:
      self.guest = travel.Guest(self.site, self.shape, pulse_port=self.pulses.port)
    except travel.Missing as error:
      raise machine.NotHere(str(error)) from None
    self.guest.here.monitor.ask('stop')

  def end(self):
    if self.guest:
      self.guest.end()
    self.site.__exit__(None, None, None)
    self.pulses.close()

  def hop(self):
    """A migration. QEMU's own pre-copy may cost an emulated guest its life: then another is booted
    and moved in its place."""
    for _ in range(ATTEMPTS):
      try:
        return self._hop()
      except (travel.Broken, OSError) as error:
        if self.way.startswith('Jaunt'):
          raise Failed(f'{self.way}: {error}') from None
        self.bench.say(f'{self.way}: the guest did not survive it; another is booted')
        self.deaths += 1
        self.guest.end()
        self.errors = 0
        self.boot()
    raise Failed(f'{self.way}: no guest survives it')

  def _hop(self):
    guest, source = self.guest, self.guest.here
    # What receives has then been in use before: see machine.warm().
    machine.warm(self.shape.work_mib * 2 * MIB)
    target = guest.start_qemu(incoming=True)
    source.monitor.ask('cont')
    time.sleep(SETTLE_S)
    source.ask('clear')
    source.monitor.events.clear()
    began = time.time()
    total = self.move(guest, target)
    ended = time.time()
    time.sleep(SETTLE_S)
    report = guest.here.report()['memory']
    target.monitor.ask('stop')
    gap = self.pulses.longest_gap(began - SETTLE_S / 2, ended + SETTLE_S / 2)
    self.hops.append(Hop(self.way, total, source.monitor, target.monitor, gap, report))
    source.end()
    self.bench.keep('hop', self.hops[-1].json())
    self._judge(report['errors'], report['first'])

  def _judge(self, errors, first):
    """QEMU's own pre-copy of an emulated guest loses writes now and then; Jaunt may not."""
    if errors == self.errors:
      return
    self.errors_in_all += errors - self.errors
    self.errors = errors
    self.bench.say(f'{self.way}: the guest has found {errors} errors, the first: {first}')
    if self.way.startswith('Jaunt'):
      raise Failed(f'{self.way}: the guest found {errors} errors: {first}')

  def finish(self):
    """The guest's last word: it looks at all of its memory."""
    self.guest.here.monitor.ask('cont')
    report = self.guest.here.report('check', seconds=120)
    self.bench.keep('guest', {'way': self.way, 'report': report, 'errors': self.errors_in_all,
                              'deaths': self.deaths})
    self._judge(report['memory']['errors'], report['memory']['first'])


def by_jaunt(*options):
  """From the start of `jaunt migrate` as a process to the event `SHUTDOWN` of the source's QEMU, which
  is told to end once every page is at the target. How long it takes to end counts on neither side."""
  def move(guest, target):
    target, receiving, start = guest.begin(*options, target=target, go=False)
    source = guest.here.monitor
    began = time.time()
    command = start()
    guest.finish(target, receiving, command, keep_source=True)
    return (source.event('SHUTDOWN') - began) * 1e3
  return move


def by_qemu(*capabilities, **parameters):
  """From the command `migrate` of its monitor to the last event `completed`."""
  def move(guest, target):
    seconds, _ = guest.migrate_by_qemu(*capabilities, target=target, keep_source=True, **parameters)
    return seconds * 1e3
  return move


# --- The comparison ---------------------------------------------------------------------------------

LABELS = {'total': 'total', 'stall': 'longest stall', 'downtime': 'downtime', 'p99': 'access p99',
          'due': 'access p99, those due while one waits',
          'worst': 'worst access'}
CAPPED = {'bandwidth': CAP, 'max_postcopy_bandwidth': CAP}


def _print_phases(tracks):
  for track in tracks:
    names = [name for name in ('prepare', 'save', 'load', 'resume')
             if any(name in hop.phases for hop in track.hops)]
    parts = ', '.join(
      f'{name} {statistics.median(hop.phases.get(name, 0) for hop in track.hops):.2f}'
      for name in names)
    print(f'    {track.way}: {statistics.median(hop.downtime for hop in track.hops):.2f} ms of '
          f'downtime: {parts}; the guest found {track.errors_in_all} errors'
          + (f' and died {track.deaths} times' if track.deaths else ''))


def _compare(bench, limit, own, *others):
  """`own` is a name and how to move, each of the others that and the most that the ratio of a figure
  may be."""
  machine.require_memory(6 << 30, 'four guests of 512 MiB')
  shape = Shape(memory_mib=512, work_mib=64 if bench.quick else 256, rate=10000, spin=True,
                pulse_us=PULSE_US)
  tracks = [Track(bench, shape, *way[:2]) for way in (own, *others)]
  try:
    for track in tracks:
      track.boot()
    for number in bench.rounds(20):
      for track in tracks if number % 2 else reversed(tracks):
        track.hop()
    for track in tracks:
      track.finish()
  finally:
    for track in tracks:
      track.end()
  for track, (way, _, wanted) in zip(tracks[1:], others):
    for key, label in LABELS.items():
      figure = bench.figure(f'{own[0]}, {limit}: {label}', 'ms', floor=way, most=wanted.get(key))
      for ours, theirs in zip(tracks[0].hops, track.hops):
        figure.add(getattr(ours, key), getattr(theirs, key))
  print(f'  {own[0]}, {limit}')
  _print_phases(tracks)


def qemu_post_copy(bench):
  """A Linux guest in QEMU: Jaunt's post-copy beside QEMU's own with preempt."""
  _compare(bench, 'no limit', ('Jaunt post-copy', by_jaunt('--mode', 'post-copy')),
           ('QEMU post-copy, preempt', by_qemu(*POST_COPY),
            {'total': 1, 'stall': 0.5, 'downtime': 1.1}))


def qemu_capped(bench):
  """The same at 125 MB/s."""
  _compare(bench, '125 MB/s',
           ('Jaunt post-copy', by_jaunt('--mode', 'post-copy', '--bandwidth', '125MB/s')),
           ('QEMU post-copy, preempt', by_qemu(*POST_COPY, **CAPPED),
            {'p99': 0.5, 'due': 0.5, 'worst': 0.2}))


def qemu_hybrid(bench):
  """The same guest: Jaunt's hybrid beside QEMU's pre-copy and multifd."""
  _compare(bench, 'no limit', ('Jaunt hybrid', by_jaunt('--mode', 'hybrid')),
           ('QEMU pre-copy', by_qemu(), {'downtime': 1}),
           ('QEMU multifd', by_qemu('multifd'), {'downtime': 0.2}))


def qemu(bench):
  """The three comparisons with QEMU one after the other: qemu_post_copy, qemu_capped, qemu_hybrid."""
  for comparison in (qemu_post_copy, qemu_capped, qemu_hybrid):
    comparison(bench)
