# SPDX-License-Identifier: Apache-2.0
"""What tests of interrupted migrations share: that a guest stands still, and the way back."""

import json
import signal

import cases
import migrating

STILL = 20  # equal answers in a row: the guest does not work; a site may say otherwise


def backing():
    """The options of a VM on KVM where that works, else of one on threads."""
    return {"thread_backed": not migrating.kvm_works()}


def phase(status):
    return (status["migration"] or {}).get("phase")


def until_phase(site, name, *wanted):
    return site.until(name, lambda status: phase(status) in wanted, f"phase {' or '.join(wanted)}")


def until_still(site, name):
    """Its guest does no operation any more. Returns the status."""
    seen = []
    wanted = getattr(site, "still", STILL)

    def still(status):
        if not status["guest"]:
            return False
        seen.append(status["guest"]["operations"])
        return len(seen) >= wanted and len(set(seen[-wanted:])) == 1
    return site.until(name, still, "the guest stands still")


def until_works(site, name):
    """Its guest does operations: more now than when it was asked first."""
    first = []

    def works(status):
        if not status["guest"]:
            return False
        first.append(status["guest"]["operations"])
        return first[-1] > first[0]
    return site.until(name, works, "the guest works")


def begin(site, case, source_environment=None, target_environment=None, through_proxy=False,
          working=True):
    """(source, target, migrate, proxy or None) of a migration from a to b that was asked for."""
    source = site.vm("a", *case.guest_options(), environment=source_environment)
    target = site.receive("b", *case.receive_options(), host=case.address,
                          environment=target_environment)
    if working:
        site.until_working("a")
    proxy = site.proxy(target.peer) if through_proxy else None
    peer = proxy.peer if proxy else target.peer
    return source, target, site.migrate("a", peer, *case.migrate_options()), proxy


def check_blocked(status, reasons):
    migration = status["migration"]
    cases.require(migration["phase"] == "blocked", f"phase {migration['phase']}")
    cases.require(migration["pages"]["missing"] > 0, "blocked, and nothing is missing")
    cases.require(migration["reason"] in reasons,
                  f"blocked for {migration['reason']}, not {reasons}: {migration['error']}")
    cases.require(migration["error"], "blocked, and no text says why")
    cases.require(status["guest"]["memory_errors"] == 0,
                  f"the guest read something wrong: {json.dumps(status['guest'])}")


def refuses_signals(site, process, name):
    """A signal does not end it, and it says why not."""
    process.signal(signal.SIGTERM)
    process.line(r"SIGTERM refused: ")
    code, answer = site.run("cancel", name)
    cases.require(code == migrating.INCOMPLETE,
                  f"cancel after COMMIT ended with {code}\n{answer.transcript()}")
    cases.require(process.running(), f"it ended all the same\n{process.transcript()}")


def abandon_target(site, target, name="b"):
    """The target gives the VM up; its report."""
    code, answer = site.run("cancel", name, "--abandon")
    cases.require(code == migrating.DONE, f"abandon: {code}\n{answer.transcript()}")
    status = target.wait()
    cases.require(status == migrating.INCOMPLETE,
                  f"an abandoned target ended with {status}\n{target.transcript()}")
    return target.json()


def resume_at_source(site, source, command, reached=migrating.FAILED):
    """The operator has fenced the target: the VM runs at the source, and `migrate` says so."""
    until_phase(site, "a", "blocked")
    code, answer = site.run("resume", "a", "--peer-fenced")
    cases.require(code == migrating.DONE, f"resume: {code}\n{answer.transcript()}")
    status = command.wait()
    report = command.json()
    cases.require(status == reached and report["vm_is_at"] == "source",
                  f"migrate ended with {status}, the VM at {report['vm_is_at']}")
    runs_at_source(site, source)


def runs_at_source(site, source):
    """As if nothing had happened: it works, and can be moved now."""
    cases.require(source.running(), f"the source has ended\n{source.transcript()}")
    until_works(site, "a")


def moves_now(site, case, source, name="c"):
    """Another migration of the same VM, that nothing disturbs, and the guest's own check."""
    target = site.receive(name, *case.receive_options(), host=case.address)
    command = site.migrate("a", target.peer, "--mode", case.mode, "--streams", str(case.streams))
    cases.require(command.wait(60) == migrating.DONE, f"migrate\n{command.transcript()}")
    cases.require(source.wait() == migrating.DONE, "the source did not end with 0")
    return cases.finish(site, cases.dataclasses.replace(case, verify=False), target, name)
