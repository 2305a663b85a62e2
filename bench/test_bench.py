#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests of the benchmarks' own parts: test_bench.py DIRECTORY-OF-THE-BUILT-PROGRAMS."""
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import unittest
import xml.etree.ElementTree

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))
from jaunt_bench import throughput  # noqa: E402
from jaunt_bench.figures import Figure, table  # noqa: E402
from jaunt_bench.throughput import Series  # noqa: E402

PROGRAMS = ''
LIMIT_S = 30


def open_for_all(*paths):
  return all(os.access(path, os.R_OK | os.W_OK) for path in paths)


class Proxy(unittest.TestCase):
  """A listener of the test's own, and a proxy in front of it."""

  def setUp(self):
    self.listener = socket.create_server(('127.0.0.1', 0))
    self.listener.settimeout(LIMIT_S)
    self.addCleanup(self.listener.close)

  def proxy(self, *options, port=None):
    port = port or self.listener.getsockname()[1]
    child = subprocess.Popen([os.path.join(PROGRAMS, 'jaunt-proxy'), '--listen', '127.0.0.1:0',
                              '--to', f'127.0.0.1:{port}', '--die-with-parent', *options],
                             stdout=subprocess.PIPE, text=True)

    def end():
      child.kill()
      child.wait()
      child.stdout.close()
    self.addCleanup(end)
    self.child = child
    return int(child.stdout.readline())

  def connect(self, port):
    near = socket.create_connection(('127.0.0.1', port), LIMIT_S)
    self.addCleanup(near.close)
    far, _ = self.listener.accept()
    far.settimeout(LIMIT_S)
    self.addCleanup(far.close)
    return near, far

  @staticmethod
  def all_of(end):
    parts = []
    while part := end.recv(1 << 20):
      parts.append(part)
    return b''.join(parts)

  def exchange(self, *options):
    """Sends both ways at once, more than the proxy may hold, and compares."""
    near, far = self.connect(self.proxy(*options, '--buffer', '256k'))
    there, back = os.urandom(3 << 20), os.urandom(2 << 20)

    def send(end, data):
      end.sendall(data)
      end.shutdown(socket.SHUT_WR)
    threads = [threading.Thread(target=send, args=pair) for pair in ((near, there), (far, back))]
    got = {}
    threads.append(threading.Thread(target=lambda: got.update(back=self.all_of(near))))
    for thread in threads:
      thread.start()
    got['there'] = self.all_of(far)
    for thread in threads:
      thread.join(LIMIT_S)
    self.assertEqual(got['there'], there)
    self.assertEqual(got['back'], back)

  def test_passes_everything_on_both_ways_intact(self):
    self.exchange()

  def test_passes_everything_on_intact_after_a_delay(self):
    self.exchange('--delay-us', '2000')

  def test_passes_everything_on_intact_at_a_rate(self):
    self.exchange('--delay-us', '300', '--rate', '64M', '--rate-back', '32M')

  def test_keeps_one_direction_open_when_the_other_has_ended(self):
    near, far = self.connect(self.proxy('--delay-us', '500'))
    near.shutdown(socket.SHUT_WR)
    self.assertEqual(far.recv(1), b'')
    far.sendall(b'still here')
    far.shutdown(socket.SHUT_WR)
    self.assertEqual(self.all_of(near), b'still here')

  def test_keeps_connections_apart(self):
    port = self.proxy('--delay-us', '200')
    pairs = [self.connect(port) for _ in range(20)]
    for number, (near, _) in enumerate(pairs):
      near.sendall(b'%04d' % number)
    for number, (_, far) in enumerate(pairs):
      self.assertEqual(far.recv(4), b'%04d' % number)

  def test_resets_the_client_when_nobody_listens_behind_it(self):
    unused = socket.socket()
    self.addCleanup(unused.close)
    unused.bind(('127.0.0.1', 0))
    port = self.proxy(port=unused.getsockname()[1])
    # The reset may come before connect() has returned.
    with self.assertRaises(ConnectionResetError):
      with socket.create_connection(('127.0.0.1', port), LIMIT_S) as near:
        near.recv(1)

  def test_resets_what_there_is_on_sigusr1_and_serves_on(self):
    port = self.proxy('--delay-us', '200')
    near, far = self.connect(port)
    near.sendall(b'x')
    self.assertEqual(far.recv(1), b'x')
    self.child.send_signal(signal.SIGUSR1)
    for end in (near, far):
      with self.assertRaises(ConnectionResetError):
        end.recv(1)
    near, far = self.connect(port)
    near.sendall(b'y')
    self.assertEqual(far.recv(1), b'y')

  def test_refuses_an_address_that_is_none(self):
    done = subprocess.run([os.path.join(PROGRAMS, 'jaunt-proxy'), '--listen', 'nonsense', '--to',
                           '127.0.0.1:1'], capture_output=True, text=True, timeout=LIMIT_S,
                          check=False)
    self.assertEqual(done.returncode, 2)
    self.assertIn('HOST:PORT', done.stderr)


class Floors(unittest.TestCase):
  """That they run and install what they say; how fast is not a matter of tests."""

  def report(self, name, *words):
    done = subprocess.run([os.path.join(PROGRAMS, 'jaunt-floor-' + name), *words],
                          capture_output=True, text=True, timeout=2 * LIMIT_S, check=False)
    self.assertEqual(done.returncode, 0, done.stderr)
    return json.loads(done.stdout)

  def test_the_ceiling_reports_a_speed_for_each_run(self):
    report = self.report('ceiling', '--bytes', '16M', '--runs', '2')
    self.assertEqual(len(report['samples_gb_per_s']), 2)
    self.assertGreater(report['gb_per_s'], 0)

  @unittest.skipUnless(os.geteuid() == 0, 'userfaultfd needs root')
  def test_every_way_of_installing_installs(self):
    # Each pass reads pages back and fails if one is wrong.
    report = self.report('install', '--bytes', '16M', '--runs', '1')
    self.assertEqual(set(report['ways']), {'receive', 'copy', 'beside', 'pwrite', 'straight',
                                           'populated'})

  @unittest.skipUnless(os.geteuid() == 0 and open_for_all('/dev/kvm'), 'needs root and /dev/kvm')
  def test_every_page_of_the_working_set_is_fetched_by_one_fault(self):
    # The guest reads every page's mark; a wrong one fails the program.
    report = self.report('fault', '--working-set', '8M', '--samples')
    self.assertEqual(report['faults'], 2048)
    self.assertEqual(report['touch_latency_us']['count'], 2048)
    self.assertEqual(len(report['samples_us']), 2048)

  @unittest.skipUnless(os.geteuid() == 0 and open_for_all('/dev/kvm'), 'needs root and /dev/kvm')
  def test_a_stream_runs_beside_the_faults(self):
    report = self.report('fault', '--push', '--working-set', '64M', '--bulk', '64M')
    self.assertGreater(report['bulk_gb_per_s'], 0)
    self.assertGreater(report['faults'], 0)

  @unittest.skipUnless(open_for_all('/dev/kvm'), 'needs /dev/kvm')
  def test_the_switchover_is_the_sum_of_its_parts(self):
    report = self.report('switchover', '--vcpus', '2', '--round-trips', '3', '--runs', '5')
    parts = report['save_us'] + report['restore_us'] + 3 * report['round_trip_us']
    self.assertAlmostEqual(report['floor_us'], parts, delta=0.01)

  def test_a_size_that_makes_no_sense_is_refused(self):
    done = subprocess.run([os.path.join(PROGRAMS, 'jaunt-floor-ceiling'), '--bytes', '-1'],
                          capture_output=True, text=True, timeout=LIMIT_S, check=False)
    self.assertEqual(done.returncode, 2)


class Figures(unittest.TestCase):
  def test_the_ratio_is_the_median_of_the_rounds_ratios(self):
    figure = Figure('f', 'us', floor='g', most=1.5)
    for value, floor in ((10, 10), (100, 50), (30, 10)):
      figure.add(value, floor)
    self.assertEqual(figure.judged, 2)  # not the ratio of the medians, 30 / 10
    self.assertIs(figure.met, False)

  def test_a_figure_without_a_floor_is_judged_by_its_median(self):
    figure = Figure('f', 'us', most=5)
    for value in (9, 4, 3):
      figure.add(value)
    self.assertEqual(figure.judged, 4)
    self.assertIs(figure.met, True)

  def test_a_value_that_is_missing_is_not_taken_for_zero(self):
    with self.assertRaises(ValueError):
      Figure('f', 'us', floor='g').add(1, None)
    with self.assertRaises(ValueError):
      Figure('f', 'us').add(None)

  def test_what_was_not_measured_is_not_met(self):
    figure = Figure('f', 'us', most=5)
    self.assertIsNone(figure.met)
    self.assertIn('wanted', table([figure])[0])


class Simulate(unittest.TestCase):
  """The simulator: the engine's policy about guests that do not exist."""

  def simulate(self, *options):
    return subprocess.run([os.path.join(PROGRAMS, 'jaunt-simulate'), *options], capture_output=True,
                          text=True, timeout=LIMIT_S, check=False)

  def test_a_guest_that_does_not_write_is_copied_once_whatever_the_mode(self):
    modes = json.loads(self.simulate('--dirty-rate', '0', '--json').stdout)['modes']
    for mode, figures in modes.items():
      self.assertAlmostEqual(figures['sent_bytes'], 4 << 30, delta=1 << 20, msg=mode)

  def test_auto_never_switches_where_that_is_forbidden(self):
    done = self.simulate('--dirty-rate', '8G', '--bandwidth', '100M', '--no-post-copy', '--json')
    self.assertEqual(json.loads(done.stdout)['modes']['auto']['end'], 'abort')

  def test_nonsense_is_refused(self):
    for options in (('--bandwidth', '0'), ('--ram', '1G', '--data', '2G'), ('--explain', 'sideways'),
                    ('--dirty-rate', 'fast'), ('--sweep', '--hot', '50'), ('more',),
                    ('--no-such-option',)):
      with self.subTest(options=options):
        self.assertEqual(self.simulate(*options).returncode, 2)

  def test_recorded_decisions_are_made_again_and_what_is_no_decision_is_counted(self):
    recorded = {'what': 'decision', 'action': 'switch', 'reason': 'so', 'input': {
      'mode': 'post-copy', 'limits': {'downtime_ns': 300000000, 'total_weight': 0.01},
      'costs': {}, 'ram_bytes': 1 << 30, 'left_bytes': 1 << 30, 'bandwidth': 1e9}}
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
      file.write(json.dumps({'what': 'event'}) + '\n' + json.dumps(recorded) + '\n')
      file.flush()
      done = self.simulate('--trace', file.name)
      self.assertEqual((done.returncode, '1 decisions, 0 different, 0' in done.stdout), (0, True),
                       done.stdout)
      recorded['action'] = 'finish'
      file.write(json.dumps(recorded) + '\nnonsense\n')
      file.flush()
      done = self.simulate('--trace', file.name)
      self.assertEqual((done.returncode, '2 decisions, 1 different, 1' in done.stdout), (1, True),
                       done.stdout)


class Throughput(unittest.TestCase):
  """Series of a guest's throughput, summed up and drawn."""

  def series(self):
    """1000 operations a millisecond, nothing at all for 100 ms after the command, half for 100 more."""
    rates = [1000] * 2000 + [0] * 100 + [500] * 100 + [1000] * 500
    samples = [(index * 1000000, rate) for index, rate in enumerate(rates)]
    return Series('pre <copy>', samples, {'begin': 2000 * 1000000, 'switch': 2100 * 1000000,
                                          'end': 2300 * 1000000})

  def test_work_that_was_not_done_is_counted_as_time(self):
    self.assertAlmostEqual(self.series().lost_ms(), 150)

  def test_a_drawing_is_well_formed_and_a_strip_shows_the_gap(self):
    drawing = throughput.svg([self.series()], 'a & b')
    self.assertEqual(xml.etree.ElementTree.fromstring(drawing).tag.split('}')[1], 'svg')
    strip = throughput.terminal([self.series()])[0]
    self.assertIn('█', strip)
    self.assertIn(' ', strip[strip.index('|'):])


if __name__ == '__main__':
  if len(sys.argv) < 2 or sys.argv[1].startswith('-'):
    sys.exit('test_bench.py DIRECTORY-OF-THE-BUILT-PROGRAMS')
  PROGRAMS = sys.argv.pop(1)
  unittest.main(verbosity=2)
