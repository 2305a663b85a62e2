# SPDX-License-Identifier: Apache-2.0
"""The machine: what it is, what is free on it, and where processes run."""
import contextlib
import os
import platform
import subprocess
import sys

MIB = 1 << 20
GIB = 1 << 30


class NotHere(Exception):
  """A scenario cannot run on this machine; the text says what it lacks."""


def cpus():
  return sorted(os.sched_getaffinity(0))


def meminfo():
  """/proc/meminfo in bytes."""
  with open('/proc/meminfo') as file:
    pairs = (line.split(':') for line in file)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.split()}


def require_memory(need, what):
  free = meminfo()['MemAvailable']
  if free < need:
    raise NotHere(f'{what} needs {need / GIB:.1f} GiB of memory, {free / GIB:.1f} are available')


def process_memory(pid):
  """RssAnon, RssShmem and the like of a process in bytes; empty once it is gone."""
  try:
    with open(f'/proc/{pid}/status') as file:
      return {key: int(value.split()[0]) * 1024
              for key, value in (line.split(':', 1) for line in file if line.startswith('Rss'))}
  except OSError:
    return {}


def describe():
  model = ''
  with open('/proc/cpuinfo') as file:
    for line in file:
      if line.startswith('model name'):
        model = line.split(':', 1)[1].strip()
        break
  return {
    'host': platform.node(), 'kernel': platform.release(), 'machine': platform.machine(),
    'cpu': model, 'cpus': len(cpus()), 'memory_bytes': meminfo()['MemTotal'],
    'load_at_start': os.getloadavg()[0],
  }


# A child of its own, so that the memory is free again when it has ended.
_WARM = '''
import mmap, sys
left, zeros = int(sys.argv[1]), bytes(1 << 20)
memory = mmap.mmap(-1, left, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
while left > 0:
  memory.write(zeros[:left])
  left -= len(zeros)
'''


def warm(size):
  """Writes and frees so much memory: what is allocated next has then been in use before. A page
  that a virtual machine has not used yet, or has reported as free, costs its hypervisor's fault on
  top."""
  subprocess.run([sys.executable, '-c', _WARM, str(size)], check=True)


# The idle scheduling class: whatever else wants the CPU gets it at once.
_SPIN = '''
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
  for _ in range(10000):
    pass
'''


@contextlib.contextmanager
def awake():
  """Keeps every CPU from going to sleep. A halted CPU of a virtual machine has to be scheduled by
  its hypervisor before it can do anything, which may take longer than what is to be measured."""
  spinners = [subprocess.Popen([sys.executable, '-c', _SPIN, str(cpu), str(os.getpid())])
              for cpu in cpus()]
  try:
    yield
  finally:
    for spinner in spinners:
      spinner.kill()
      spinner.wait()


class Placement:
  """Which CPUs the source, the target and the vCPUs may use; None: any.

  sides   the source on half of the CPUs, the target with its vCPUs on the other, like two hosts
  apart   the vCPUs on half of the CPUs, all else on the other
  any     wherever the kernel likes
  """

  NAMES = ('sides', 'apart', 'any')

  def __init__(self, name):
    available = cpus()
    if name != 'any' and len(available) < 2:
      raise NotHere(f'placement "{name}" needs two CPUs')
    half = len(available) // 2
    low, high = available[:half], available[half:]
    self.name = name
    self.source, self.target, self.vcpus = {
      'sides': (low, high, high), 'apart': (low, low, high), 'any': (None, None, None)}[name]

  @staticmethod
  def text(which):
    return ','.join(map(str, which)) if which else 'any'

  def describe(self):
    return {'name': self.name, 'source': self.text(self.source), 'target': self.text(self.target),
            'vcpu': self.text(self.vcpus)}

  def floor_options(self):
    """For the floors of two processes."""
    if not self.source:
      return []
    return ['--source-cpus', self.text(self.source), '--target-cpus', self.text(self.target)]

  def fault_floor_options(self):
    if not self.source:
      return []
    roles = [(role, self.source) for role in ('source', 'source-bulk')]
    roles += [(role, self.target) for role in ('handler', 'bulk')] + [('vcpu', self.vcpus)]
    return [word for role, which in roles for word in ('--pin', f'{role}={self.text(which)}')]

  def start_source(self, pid):
    """A new process, whose threads are to inherit where they run."""
    if self.source:
      os.sched_setaffinity(pid, self.source)

  def start_target(self, pid):
    if self.target:
      os.sched_setaffinity(pid, self.target)

  def place_vcpus(self, pid):
    """Moves the vCPU threads that a process has so far, where they are not to run beside its
    others; returns how many there are."""
    if self.vcpus == self.target:
      return 0
    found = 0
    for thread in _threads(pid):
      try:
        with open(f'/proc/{pid}/task/{thread}/comm') as file:
          if not file.read().startswith('vcpu'):
            continue
        os.sched_setaffinity(int(thread), self.vcpus)
        found += 1
      except OSError:
        continue  # the thread has ended
    return found


def _threads(pid):
  try:
    return os.listdir(f'/proc/{pid}/task')
  except OSError:
    return []
