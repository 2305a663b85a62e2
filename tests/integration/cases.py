# SPDX-License-Identifier: Apache-2.0
"""Migrations as points of a product of settings, and what must hold after each of them."""

import dataclasses
import itertools
import random
import signal

import migrating

# The product. What a setting means for the commands is in Case.
PRODUCT = {
    "mode": ("post-copy", "hybrid", "pre-copy", "stop-and-copy", "auto"),
    "workload": ("idle", "sweep", "random", "read", "zipf", "kv", "discard"),
    "vcpus": (1, 2),
    "page_size": ("4k", "2m"),
    "streams": (1, 4),
    "verify": (False, True),
    "push": ("on", "later"),
    "fault_threads": (1, 2),
    "address": ("127.0.0.1", "[::1]"),
    "thread_backed": (False, True),
    "tracker": ("best", "ring", "write-protect"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    mode: str = "post-copy"
    workload: str = "random"
    vcpus: int = 1
    page_size: str = "4k"
    streams: int = 1
    verify: bool = False
    push: str = "on"
    fault_threads: int = 1
    address: str = "127.0.0.1"
    thread_backed: bool = False
    tracker: str = "best"
    memory_mib: int = 64
    working_set: int = 50
    rate: int = 0
    seed: int = 1
    check: int = 64

    def guest_options(self):
        options = ["--memory", f"{self.memory_mib}M", "--vcpus", str(self.vcpus), "--page-size",
                   self.page_size, "--workload",
                   f"{self.workload}:ws={self.working_set}%,rate={self.rate},seed={self.seed},"
                   f"check={self.check}"]
        if self.thread_backed:
            return options + ["--thread-backed"]
        return options + (["--dirty-tracking", "ring"] if self.tracker == "ring" else [])

    def receive_options(self):
        options = ["--fault-threads", str(self.fault_threads)]
        return options + (["--thread-backed"] if self.thread_backed else [])

    def migrate_options(self):
        options = ["--mode", self.mode, "--streams", str(self.streams)]
        if self.verify:
            options.append("--verify")
        if self.tracker not in ("best", "ring") and self.tracks():
            options += ["--tracker", self.tracker]
        if self.pushed_later():
            options += ["--push", "off"]
        return options

    def tracks(self):
        """Modes with rounds."""
        return self.mode in ("hybrid", "pre-copy", "auto")

    def pushed_later(self):
        """Only where the VM may run with pages missing, or nothing would bring them."""
        return self.push != "on" and self.mode in ("post-copy", "hybrid")

    def huge_pages(self):
        """For both sides, and one for the engine's own view."""
        return self.memory_mib + 8 if self.page_size == "2m" else 0

    def text(self):
        words = [self.mode, self.workload, f"{self.vcpus} vCPU", self.page_size, f"{self.memory_mib} MiB",
                 f"{self.streams} stream", "verify" if self.verify else "no verify",
                 f"push {self.push}", f"{self.fault_threads} fault thread", self.address,
                 "threads" if self.thread_backed else "kvm", f"tracker {self.tracker}", f"ws {self.working_set}%",
                 f"rate {self.rate}", f"seed {self.seed}"]
        return ", ".join(words)


def pairwise(product, seed):
    """A cover: every two settings of any two keys stand together in at least one row.

    Greedy, after Cohen, Dalal, Fredman and Patton, "The AETG system" (1997): each row is the best of
    some random candidates, each of which is built around a pair that is not covered yet. Follows
    from the seed alone.
    """
    keys = sorted(product)
    chance = random.Random(seed)
    open_pairs = {((a, x), (b, y)) for a, b in itertools.combinations(keys, 2)
                  for x in product[a] for y in product[b]}
    rows = []
    while open_pairs:
        best, most = None, 0
        for _ in range(30):
            row = dict(chance.choice(sorted(open_pairs, key=repr)))
            for key in chance.sample(keys, len(keys)):
                if key not in row:
                    row[key] = max(chance.sample(product[key], len(product[key])),
                                   key=lambda value, at=key: sum(
                                       _pair(at, value, other, row[other]) in open_pairs
                                       for other in row))
            covered = sum(_pair(a, row[a], b, row[b]) in open_pairs
                          for a, b in itertools.combinations(keys, 2))
            if covered > most:
                best, most = row, covered
        open_pairs -= {_pair(a, best[a], b, best[b]) for a, b in itertools.combinations(keys, 2)}
        rows.append(best)
    return rows


def _pair(a, x, b, y):
    return ((a, x), (b, y)) if a < b else ((b, y), (a, x))


# --- Running one ------------------------------------------------------------------------------------


def require(condition, what):
    if not condition:
        raise migrating.Failure(what)


def check_pages(report, what):
    pages = report["pages"]
    arrived = pages["zero"] + pages["hole"] + pages["pushed"] + pages["demanded"] + pages["copied"]
    arrived += pages["kept"]
    require(pages["missing"] == 0, f"{what}: {pages['missing']} pages are missing")
    require(arrived == pages["total"],
            f"{what}: the pages do not add up: {arrived} arrived of {pages['total']}: {pages}")
    require(report["install_conflicts"] == 0,
            f"{what}: {report['install_conflicts']} pages were mapped behind the engine's back")


def check_completed(report, what, verify=False):
    require(report["result"] == "completed" and report["exit_code"] == migrating.DONE,
            f"{what}: result {report['result']}, {report['reason']}: {report['error']}")
    require(report["vm_is_at"] == "target", f"{what}: the VM is at {report['vm_is_at']}")
    require(report["mismatched_pages"] == 0,
            f"{what}: {report['mismatched_pages']} pages were not the source's")
    check_pages(report, what)
    if verify:
        require(report["verified_pages"] >= report["pages"]["total"],
                f"{what}: only {report['verified_pages']} pages of {report['pages']['total']} "
                "were verified")


def check_guest(guest, what, worked=True):
    require(guest["memory_errors"] == 0,
            f"{what}: the guest found {guest['memory_errors']} errors: {guest['first_error']}")
    require(guest["self_check"] == "clean", f"{what}: the guest's check: {guest['self_check']}")
    if worked:
        require(guest["operations_since_arrival"] > 0, f"{what}: the guest did not run on there")


def stop(process, seconds=20):
    """SIGINT, and its object."""
    process.signal(signal.SIGINT)
    status = process.wait(seconds)
    report = process.json()
    require(status == report["exit_code"], f"it ended with {status}, says {report['exit_code']}")
    return report


def finish(site, case, target, name="b"):
    """The VM has arrived: lets it run on, stops it, and checks what it says. Its report."""
    works = case.workload != "idle"
    if works:
        site.until(name, lambda status: status["guest"]["operations_since_arrival"] > 0,
                   "the guest runs on at the target")
    report = stop(target)
    check_completed(report, "receive", case.verify)
    check_guest(report["guest"], "receive", works)
    return report


def let_go(site, name, target):
    """The target of a migration that was cancelled ends with it; one that had not heard of it waits
    for another, until it is told."""
    for _ in range(600):
        if target.ends_within(0.05):
            return
        status = site.status(name)
        if status and status["state"] == "waiting":
            break
    site.run("cancel", name)
    target.wait(30)


def cancel(site, case, seconds):
    """A migration that is cancelled after so long. False: that was too late, and it has moved."""
    target = site.receive("b0", *case.receive_options(), host=case.address)
    command = site.migrate("a", target.peer, *case.migrate_options())
    command.ends_within(seconds)
    site.run("cancel", "a")
    if command.wait(60) == migrating.DONE:
        finish(site, case, target, "b0")
        return False
    require(command.json()["result"] == "cancelled" and command.json()["vm_is_at"] == "source",
            f"cancelled, and it says {command.json()['result']}: {command.json()['error']}")
    let_go(site, "b0", target)
    return True


def _leg(site, case, holder, at, to, cancel_after):
    """One of many moves, or an attempt that is cancelled on the way. (who has the VM then, its name)"""
    target = site.receive(to, *case.receive_options(), host=case.address)
    command = site.migrate(at, target.peer, *case.migrate_options())
    if cancel_after is not None:
        command.ends_within(cancel_after)
        site.run("cancel", at)
    ended, report = command.wait(60), command.json()
    if ended != migrating.DONE:
        require(cancel_after is not None and report["result"] == "cancelled"
                and report["vm_is_at"] == "source",
                f"{at} to {to}: {report['result']}: {report['error']}")
        let_go(site, to, target)
        return holder, at
    check_completed(report, f"{at} to {to}", case.verify)
    require(holder.wait() == migrating.DONE, f"{at} did not end with 0")
    said = holder.json()
    require(said["result"] == "moved" or said["onward"]["result"] == "completed",
            f"{at} does not say that the VM has moved")
    if case.workload != "idle":
        site.until(to, lambda status: status["guest"]["operations_since_arrival"] > 0,
                   f"the guest runs on at {to}")
    return target, to


def there_and_back(site, case, times, chance):
    """The guest goes there and back so many times, each way in some mode, and now and then cancelled
    first at some moment. Returns the last target's report."""
    case = dataclasses.replace(case, push="on")
    holder, at = site.vm("a", *case.guest_options()), "a"
    site.until_working(at)
    moves = tries = 0
    while moves < 2 * times:
        case = dataclasses.replace(case, mode=chance.choice(PRODUCT["mode"]))
        cancel_after = chance.uniform(0, 0.15) if chance.random() < 0.2 else None
        tries += 1
        before = at
        holder, at = _leg(site, case, holder, at, f"{'ba'[moves % 2]}{tries}", cancel_after)
        moves += at != before
    return finish(site, case, holder, at)


def cut(source, command, proxy, delays):
    """Resets every connection of a migration past COMMIT, after each of so many seconds."""
    try:
        source.line(r"runs at .* now, which fetches its pages")
    except migrating.Failure:
        if source.running():
            raise
        return  # it has moved meanwhile
    for delay in delays:
        if command.ends_within(delay):
            return
        proxy.signal(signal.SIGUSR1)


def until_found_again(site, command):
    """The link that was cut, unless the cut came too late: nothing was missing any more."""
    def found(status):
        migration = status["migration"] or {}
        return (not command.running() or migration.get("reconnections", 0) > 0 or
                migration.get("pages", {}).get("missing") == 0)
    site.until("b", found, "the link is found again")


def run(site, case, environment=None, cancel_after=None, cuts=()):
    """One migration from start to end, after one that is cancelled if so wanted, with the link cut
    once it is past COMMIT. Raises migrating.Failure; returns the target's report."""
    source = site.vm("a", *case.guest_options(), environment=environment)
    site.until_working("a")
    if cancel_after is not None and not case.pushed_later():
        if not cancel(site, case, cancel_after):
            source = site.vm("a", *case.guest_options(), environment=environment)
            site.until_working("a")
    target = site.receive("b", *case.receive_options(), host=case.address)
    proxy = site.proxy(target.peer) if cuts else None
    command = site.migrate("a", (proxy or target).peer, *case.migrate_options())
    if cuts:
        cut(source, command, proxy, cuts)
        if case.pushed_later():  # what is missing stays missing
            until_found_again(site, command)
    if case.pushed_later():
        site.until("b", lambda status: not command.running() or
                   (status["migration"] or {}).get("phase") == "post-copy",
                   "the VM is handed over")
        turned_on, answer = site.run("set", "b" if case.seed % 2 else "a", "push=on")
        # Where pages are few, the guest may have asked for all of them by then.
        require(turned_on == migrating.DONE or command.wait(60) == migrating.DONE,
                f"push could not be turned on\n{answer.transcript()}")
    require(command.wait(60) == migrating.DONE, f"migrate failed\n{command.transcript()}")
    check_completed(command.json(), "migrate", case.verify)
    require(source.wait() == migrating.DONE, "the source did not end with 0")
    require(source.json()["result"] == "moved", "the source does not say that the VM has moved")
    return finish(site, case, target)
