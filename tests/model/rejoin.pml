/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Who runs the VM, over links that are lost at any moment: LOADED, COMMIT or ABORT, and coming back
 * (docs/protocol.md, "Coming back"). Checked by exhaustion:
 *
 *     spin -run -noclaim tests/model/rejoin.pml      (some 2.5 million states, 4 s)
 *
 * A link is one attempt of the source to connect, and has the number of its epoch. Whether the
 * target lets it in, and when, is open: an attempt may arrive late. All links but the last may be
 * cut; what was under way on one then may arrive or not. The target may be fenced by an operator,
 * who kills it, and then the source may be told to run the VM.
 *
 * What must hold: the two never both run; the source lets its memory go only if the target has all
 * of it; and nothing ends, or stands still, while the target is in doubt or waits for pages (an
 * invalid end state), unless it was fenced.
 */
#define LINKS 4

mtype = { LOADED, COMMIT, ABORT, READY, RESUMED, COMPLETE, RELEASED };

chan to_target[LINKS] = [3] of { mtype };
chan to_source[LINKS] = [3] of { mtype };
bool offered[LINKS];     /* the source has connected with this epoch */
bool cut[LINKS];
bool gone[LINKS];        /* and what was under way has not arrived */
bool dead[LINKS];        /* closed by the side that left it, or never let in */

bool source_runs, target_runs, committed, released, fenced;
bool all_present;
bool agreed;             /* the target has heard COMMIT on the link that it has */
byte source_link, target_link; /* the present ones */

#define LOST(n) (cut[n] || dead[n])
/* That message comes next. */
#define AT_TARGET(what) (!gone[target_link] && to_target[target_link]?[what])
#define AT_SOURCE(what) (!gone[source_link] && to_source[source_link]?[what])

inline safe()
{
	assert(!(source_runs && target_runs));
	assert(!released || all_present);
}

/* What is sent on a lost link is lost. */
inline say_target(what)
{
	if
	:: LOST(source_link) || full(to_target[source_link]) -> skip
	:: !LOST(source_link) && nfull(to_target[source_link]) -> to_target[source_link]!what
	fi
}

inline say_source(what)
{
	if
	:: LOST(target_link) || full(to_source[target_link]) -> skip
	:: !LOST(target_link) && nfull(to_source[target_link]) -> to_source[target_link]!what
	fi
}

/* The next attempt: the link of before is left, and nothing of it is heard any more. */
inline come_back()
{
	d_step {
		dead[source_link] = true;
		source_link++;
		offered[source_link] = true
	}
}

active proctype source()
{
	bool runs_there = false;

	offered[0] = true;
	if
	:: AT_SOURCE(LOADED) -> to_source[0]?LOADED;
		if
		:: d_step { committed = true }; say_target(COMMIT); goto post_copy
		:: goto aborted /* something else is wrong, or a cancel was first */
		fi
	:: LOST(0) -> goto aborted
	fi;

aborted:
	assert(!committed);
	d_step { source_runs = true; safe() };
	say_target(ABORT);
tell:	if
	:: source_link < LINKS - 1 && LOST(source_link) -> come_back(); say_target(ABORT); goto tell
	:: dead[source_link] -> skip /* the target has heard, and left; or refuses */
	:: fenced -> skip
	fi;
	goto end;

post_copy:
	do
	/* Page channels are wanted; whether it runs there is not said by that. */
	:: AT_SOURCE(READY) -> to_source[source_link]?READY
	:: AT_SOURCE(RESUMED) -> to_source[source_link]?RESUMED; runs_there = true
	:: AT_SOURCE(COMPLETE) -> to_source[source_link]?COMPLETE;
		assert(runs_there);
		d_step { released = true; safe() };
		say_target(RELEASED);
		goto end
	:: LOST(source_link) && source_link < LINKS - 1 -> come_back(); say_target(COMMIT)
	:: fenced ->
		d_step { source_runs = true; safe() };
		goto end
	od;
end:	skip
}

/* Lets an attempt in that is later than the present link. */
inline let_in(number)
{
	d_step {
		dead[target_link] = true;
		target_link = number;
		agreed = false
	}
}

active proctype target()
{
	byte late;

	if /* until LOADED */
	:: LOST(0) -> goto forgotten
	:: say_source(LOADED)
	fi;

doubt:	do
	:: fenced -> goto ended
	:: AT_TARGET(COMMIT) -> to_target[target_link]?COMMIT; agreed = true; break
	:: AT_TARGET(ABORT) -> to_target[target_link]?ABORT; goto forgotten
	:: offered[1] && target_link < 1 -> let_in(1)
	:: offered[2] && target_link < 2 -> let_in(2)
	:: offered[3] && target_link < 3 -> let_in(3)
	od;

	/* One that was taken up after the death of its process has its page channels before it runs,
	 * and all pages may come by then. */
	if
	:: say_source(READY);
		if
		:: !LOST(target_link) -> all_present = true
		:: skip
		fi
	:: skip
	fi;

	atomic {
		if
		:: fenced -> goto ended
		:: else -> target_runs = true; safe()
		fi
	};
	say_source(RESUMED);
	do
	:: fenced -> goto ended
	:: AT_TARGET(COMMIT) -> to_target[target_link]?COMMIT; say_source(RESUMED); agreed = true
	:: AT_TARGET(RELEASED) -> to_target[target_link]?RELEASED; goto ended
	:: AT_TARGET(ABORT) -> to_target[target_link]?ABORT; assert(false)
	/* Pages come over a link that is up. */
	:: !all_present && agreed && !LOST(target_link) -> all_present = true
	/* Repeated until it is heard. */
	:: all_present && agreed && !LOST(target_link) && empty(to_source[target_link]) &&
	   !released -> say_source(COMPLETE)
	/* A source that has let go and is gone: it waits no longer. */
	:: all_present && released -> goto ended
	:: offered[1] && target_link < 1 -> let_in(1)
	:: offered[2] && target_link < 2 -> let_in(2)
	:: offered[3] && target_link < 3 -> let_in(3)
	od;

forgotten:
	skip;
	/* Later attempts find nobody who knows the session, and are told. */
	d_step {
		late = 0;
		do
		:: late < LINKS -> dead[late] = true; late++
		:: else -> break
		od
	};
ended:	skip
}

/* Loses links; what was under way may have arrived before. */
active proctype network()
{
end:	do
	:: !cut[0] -> cut[0] = true
	:: offered[1] && !cut[1] -> cut[1] = true
	:: offered[2] && !cut[2] -> cut[2] = true
	:: cut[0] && !gone[0] -> gone[0] = true
	:: cut[1] && !gone[1] -> gone[1] = true
	:: cut[2] && !gone[2] -> gone[2] = true
	:: gone[0] && gone[1] && gone[2] -> break
	od
}

active proctype operator()
{
end:	if
	/* Power off first: from then on it does not run, and never will. */
	:: d_step { committed && !released -> fenced = true; target_runs = false }
	fi
}
