# SPDX-License-Identifier: Apache-2.0
"""The programs that are measured, and their floors, as processes."""
import json
import os
import re
import signal
import subprocess
import tempfile
import threading
import time

from . import machine

START_S = 60
POPULATE_S = 180
END_S = 30


class Failed(Exception):
  """A program did not do what the benchmark needs of it."""


class Process:
  """A program in the background; its stderr is followed, its stdout kept."""

  def __init__(self, words, environment=None, place=None):
    self.words = words
    self.lines = []
    self.changed = threading.Condition()
    self.output = tempfile.TemporaryFile('w+')
    # A process group, so that a Ctrl-C is answered here; not a session: the kernel schedules each
    # session as a group of its own (sched_autogroup), and the rank of a thread then counts for
    # nothing against threads of the other process. Floors are one session too.
    self.child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=self.output,
                                  stderr=subprocess.PIPE, text=True, env=environment,
                                  process_group=0)
    if place:
      place(self.child.pid)
    self.follower = threading.Thread(target=self._follow, daemon=True)
    self.follower.start()

  @property
  def pid(self):
    return self.child.pid

  def _follow(self):
    for line in self.child.stderr:
      with self.changed:
        self.lines.append(line.rstrip('\n'))
        self.changed.notify_all()
    with self.changed:
      self.lines.append(None)
      self.changed.notify_all()

  def wait_for_line(self, pattern, seconds):
    """The match of the first line of stderr that the pattern matches."""
    deadline = time.monotonic() + seconds
    seen = 0
    with self.changed:
      while True:
        for line in self.lines[seen:]:
          found = line is not None and re.search(pattern, line)
          if found:
            return found
          if line is None:
            raise Failed(f'{self.name()} ended: {self.last_words()}')
        seen = len(self.lines)
        left = deadline - time.monotonic()
        if left <= 0 or not self.changed.wait(left):
          raise Failed(f'{self.name()} did not say "{pattern}" within {seconds} s')

  def name(self):
    return ' '.join([os.path.basename(self.words[0])] + self.words[1:])

  def last_words(self):
    return ' / '.join([line for line in self.lines if line][-3:]) or 'nothing said'

  def wait(self, seconds):
    try:
      return self.child.wait(seconds)
    except subprocess.TimeoutExpired:
      raise Failed(f'{self.name()} has not ended within {seconds} s') from None

  def report(self):
    """The JSON object on the last line of stdout."""
    self.output.seek(0)
    lines = [line for line in self.output.read().splitlines() if line.strip()]
    try:
      return json.loads(lines[-1])
    except (IndexError, ValueError):
      raise Failed(f'{self.name()} printed no JSON object: {self.last_words()}') from None

  def signal(self, number):
    if self.child.poll() is None:
      self.child.send_signal(number)

  def end(self):
    """Whatever it is doing."""
    if self.child.poll() is None:
      self.child.kill()
      self.child.wait()
    self.follower.join(1)
    self.output.close()


class Programs:
  """Where they are, and the runtime directory that the commands share."""

  def __init__(self, build, placement):
    self.build = build
    self.placement = placement
    self.runtime = tempfile.TemporaryDirectory(prefix='jaunt-bench-')
    self.environment = dict(os.environ, JAUNT_RUNTIME_DIR=self.runtime.name)
    self.running = []
    for path in (self.jaunt(), self.bench('jaunt-proxy')):
      if not os.access(path, os.X_OK):
        raise Failed(f'{path} is not there: build the tree first, or name another with --build')

  def jaunt(self):
    return os.path.join(self.build, 'cli', 'jaunt')

  def bench(self, name):
    return os.path.join(self.build, 'bench', name)

  def start(self, words, place=None):
    process = Process(words, self.environment, place)
    self.running.append(process)
    return process

  def floor(self, name, *words, seconds=300):
    """Runs a floor program and returns what it reports."""
    process = self.start([self.bench('jaunt-floor-' + name), *map(str, words)])
    code = process.wait(seconds)
    if code:
      raise Failed(f'{process.name()}: exit code {code}: {process.last_words()}')
    return process.report()

  def status(self, name):
    """What the owner of a VM says of it; None if nobody has the name."""
    done = subprocess.run([self.jaunt(), 'status', name, '--json'], env=self.environment,
                          capture_output=True, text=True, timeout=START_S, check=False)
    try:
      answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
      return None
    if 'vms' in answer:
      return next((vm for vm in answer['vms'] if vm.get('name') == name), None)
    return answer.get('vm', answer)

  def end_all(self):
    for process in self.running:
      process.end()
    self.running = []

  def close(self):
    self.end_all()
    self.runtime.cleanup()


def proxy_port(process):
  """The port that the proxy prints as soon as it listens."""
  deadline = time.monotonic() + START_S
  while time.monotonic() < deadline:
    text = os.pread(process.output.fileno(), 16, 0).decode()
    if text.endswith('\n'):
      return int(text)
    if process.child.poll() is not None:
      break
    time.sleep(0.005)
  raise Failed(f'{process.name()} does not listen: {process.last_words()}')


class Migration:
  """One VM and its way from one process to another, step by step.

  Leave it as a context manager: whatever still runs is ended then.
  """

  def __init__(self, programs, memory, vcpus=2, workload='random', page_size='4k', proxy=None):
    self.programs = programs
    self.memory = memory
    self.vcpus = vcpus
    self.workload = workload
    self.page_size = page_size
    self.proxy_options = proxy
    self.peak = {'source': 0, 'target': 0}
    self.base = {'source': 0, 'target': 0}
    self.done = threading.Event()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.done.set()
    self.programs.end_all()

  def boot(self, populated_bytes):
    """Starts the VM and waits until the guest has filled its working set."""
    placement = self.programs.placement
    self.source = self.programs.start(
      [self.programs.jaunt(), 'vm', 'run', 'there', '--memory', str(self.memory),
       '--vcpus', str(self.vcpus), '--workload', self.workload, '--page-size', self.page_size,
       '--json'], placement.start_source)
    self.source.wait_for_line('ready:', START_S)
    placement.place_vcpus(self.source.pid)
    deadline = time.monotonic() + POPULATE_S
    while machine.process_memory(self.source.pid).get('RssShmem', 0) < populated_bytes:
      if time.monotonic() > deadline:
        raise Failed(f'the guest has not filled its working set within {POPULATE_S} s')
      if self.source.child.poll() is not None:
        raise Failed(f'the VM ended: {self.source.last_words()}')
      time.sleep(0.05)

  def listen(self, *options):
    self.target = self.programs.start(
      [self.programs.jaunt(), 'receive', 'tcp:127.0.0.1:0', '--as', 'here', '--json', *options],
      self.programs.placement.start_target)
    port = int(self.target.wait_for_line(r'listening on tcp:127\.0\.0\.1:(\d+)', START_S)[1])
    if self.proxy_options is not None:
      proxy = self.programs.start([self.programs.bench('jaunt-proxy'), '--listen', '127.0.0.1:0',
                                   '--to', f'127.0.0.1:{port}', '--die-with-parent',
                                   *self.proxy_options])
      port = proxy_port(proxy)
    self.port = port

  def begin(self, *options):
    """Asks for the migration, by post-copy unless told otherwise; it goes on in the background."""
    mode = () if '--mode' in options else ('--mode', 'post-copy')
    for side, process in (('source', self.source), ('target', self.target)):
      self.base[side] = machine.process_memory(process.pid).get('RssAnon', 0)
    self.watcher = threading.Thread(target=self._watch, daemon=True)
    self.watcher.start()
    self.mover = self.programs.start([self.programs.jaunt(), 'migrate', 'there',
                                      f'tcp:127.0.0.1:{self.port}', '--json', *mode, *options])

  def _watch(self):
    """Notes the most anonymous memory each side has, and places the vCPUs as they appear."""
    placement = self.programs.placement
    to_place = self.vcpus if placement.vcpus != placement.target else 0
    while not self.done.is_set():
      for side, process in (('source', self.source), ('target', self.target)):
        self.peak[side] = max(self.peak[side],
                              machine.process_memory(process.pid).get('RssAnon', 0))
      if to_place:
        to_place = self.vcpus - placement.place_vcpus(self.target.pid)
      # vCPUs exist for some milliseconds before they run; memory is slow.
      self.done.wait(0.002 if to_place else 0.1)

  def target_state(self):
    vm = self.programs.status('here')
    return (vm or {}).get('migration') or {}

  def push_on(self):
    done = subprocess.run([self.programs.jaunt(), 'set', 'here', 'push=on'],
                          env=self.programs.environment, capture_output=True, text=True,
                          timeout=START_S, check=False)
    if done.returncode:
      raise Failed(f'jaunt set here push=on: {done.stderr.strip()}')

  def finish(self, seconds=300, after=0):
    """Waits for the end, lets the guest run for so many seconds more, stops the VM, and returns the reports
    of migrate and receive."""
    code = self.mover.wait(seconds)
    self.moved = self.mover.report()
    if code:
      raise Failed(f'migrate: exit code {code}: {self.moved.get("error", "")} '
                   f'{self.mover.last_words()}')
    # The source is released at once, the target says so when it has heard of it.
    self.target.wait_for_line('complete', END_S)
    self.done.set()
    time.sleep(after)
    # What the guest does from here on, when it checks its memory, is no work.
    self.stopped_ns = time.monotonic_ns()
    self.target.signal(signal.SIGTERM)
    self.target.wait(END_S)
    self.received = self.target.report()
    guest = self.received.get('guest') or {}
    if guest.get('memory_errors'):
      raise Failed(f'the guest found {guest["memory_errors"]} memory errors: '
                   f'{guest.get("first_error")}')
    return self.moved, self.received

  def grown(self, side):
    """Anonymous memory that the side had at most, beyond what it had before the migration."""
    return max(0, self.peak[side] - self.base[side])
