//! The interleavings of docs/scenarios.md by their numbers: the model goes exactly that way, then
//! on until nothing is left to do, and is judged as in a search.

use crate::reference::{
    Admitted, Begun, Cancelled, Delivered, Ended, How, Lived, Position, Shared,
};
use crate::world::Fault::{
    self, Cancel, CrashRelay, CrashWorker, DropSocket, Empty, LosePublish, Pause, Repeat, Resend,
    RollBack,
};
use crate::world::Step::{
    Again, CommitRelay, Connect, CopyRelay, CopyWorker, Feed, LeaseEnds, Notice, Read, Receive,
    Send, Snapshot, Work,
};
use crate::world::{Bounds, Stage, Step, World};

const ALL: &[(Fault, u8)] = &[
    (CrashWorker, 2),
    (CrashRelay, 1),
    (Fault::MoveWorker, 1),
    (Pause, 1),
    (Repeat, 2),
    (LosePublish, 1),
    (DropSocket, 1),
    (Empty, 1),
    (RollBack, 1),
    (Cancel, 1),
    (Resend, 1),
];

const TWO: &[u8] = &[0, 0];

/// A client that follows and a relay that has settled.
fn begun(messages: usize) -> World {
    let mut world = World::new(&Bounds {
        conversations: &TWO[..messages],
        pieces: 2,
        window: 1,
        faults: 10,
        each: ALL,
        after: &[],
        without: None,
    });
    go(
        &mut world,
        &[Connect, Read, Receive, Step::Relay(0), Step::Relay(0)],
    );
    world
}

fn go(world: &mut World, steps: &[Step]) {
    let mut possible = Vec::new();
    for step in steps {
        world.steps(&mut possible);
        world.faults(&mut possible);
        assert!(
            possible.contains(step),
            "{step:?} is not possible in {world:#?}"
        );
        if let Err(violation) = world.apply(*step) {
            panic!("{step:?}: {violation}");
        }
    }
}

fn send(world: &mut World, message: u8) {
    let gateway = [Step::Gateway(0); 3];
    go(world, &[&[Send(0, message)][..], &gateway].concat());
}

/// Takes the record and begins.
fn take(world: &mut World, worker: usize, record: usize) {
    go(world, &[Work(worker, record); 2]);
}

fn hear(world: &mut World) {
    while world.client.can_feed() || world.client.can_receive() {
        let step = if world.client.can_receive() {
            Receive
        } else {
            Feed
        };
        go(world, &[step]);
    }
}

/// On until nothing is left to do.
fn rest(mut world: World) -> World {
    let mut steps = Vec::new();
    loop {
        world.steps(&mut steps);
        let Some(step) = steps.first().copied() else {
            break;
        };
        go(&mut world, &[step]);
    }
    if let Err(violation) = world.check_rest() {
        panic!("{violation}");
    }
    world
}

#[test]
fn s1_a_repeated_deliver_before_the_rewind_is_lost() {
    let mut world = begun(2);
    send(&mut world, 0);
    send(&mut world, 1);
    hear(&mut world);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    take(&mut world, 0, 1);
    go(&mut world, &[Work(0, 1); 4]);
    hear(&mut world);
    go(
        &mut world,
        &[Step::Relay(0), CopyRelay(0), Step::Fault(Empty, 0), Again],
    );
    assert_eq!(world.mailbox_end(), None, "R1 was taken without R0");
    assert!(!matches!(world.position(), Some(Position::At(_))));
    go(&mut world, &[Notice(0)]);
    let world = rest(world);
    assert_eq!(world.position(), Some(Position::At(1)));
}

#[test]
fn s2_the_answer_that_the_log_has_first_is_the_only_one() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    go(&mut world, &[Step::Relay(0)]);
    hear(&mut world);
    let seen = world.client.seen(0);
    go(
        &mut world,
        &[Step::Fault(CrashWorker, 0), Step::Fault(Empty, 0)],
    );
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    assert_eq!(world.responses.len(), 2);
    assert_ne!(world.responses[0], world.responses[1]);
    let world = rest(world);
    assert_eq!(world.client.seen(0), seen);
}

#[test]
fn s3_what_was_rolled_back_is_brought_back_by_another_relay() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    go(&mut world, &[Snapshot, Step::Relay(0), CommitRelay(0)]);
    go(
        &mut world,
        &[Step::Fault(CrashRelay, 0), Step::Fault(RollBack, 0)],
    );
    assert_eq!((world.committed_out, world.mailbox_end()), (1, None));
    let world = rest(world);
    assert_eq!(world.mailbox_end(), Some(0));
}

#[test]
fn s4_the_text_begins_anew_with_the_same_attempt() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0)]);
    hear(&mut world);
    assert_eq!(world.client.text(0), [1]);
    go(
        &mut world,
        &[Step::Fault(CrashWorker, 0), Step::Fault(Empty, 0)],
    );
    take(&mut world, 0, 0);
    let attempt = world.workers[0].tasks[0].map(|one| one.attempt);
    assert_eq!(attempt, Some(1), "the same number again");
    go(&mut world, &[Read, Work(0, 0)]);
    hear(&mut world);
    assert_eq!(world.client.text(0), [2]);
    rest(world);
}

#[test]
fn s5_a_stale_copy_of_a_fenced_workers_text_is_refused() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(
        &mut world,
        &[Step::Fault(CrashWorker, 0), LeaseEnds(0), Snapshot],
    );
    take(&mut world, 0, 0);
    go(
        &mut world,
        &[CopyWorker(0, 0), Work(0, 0), Step::Fault(RollBack, 0)],
    );
    // Fenced by what was rolled back to, and begun again.
    go(&mut world, &[Work(0, 0)]);
    assert_eq!(
        world.workers[0].tasks[0].map(|one| one.stage),
        Some(Stage::Begins)
    );
    go(&mut world, &[Work(0, 0)]);
    assert_eq!(world.workers[0].tasks[0].map(|one| one.attempt), Some(3));
    go(&mut world, &[Again]);
    let flight = world.shared.messages[0].flight.as_ref();
    assert_eq!(
        flight.map(|one| one.text.len()),
        Some(0),
        "the stale copy was taken"
    );
    rest(world);
}

#[test]
fn s6_a_repeated_begin_keeps_attempt_and_text() {
    let mut world = begun(1);
    send(&mut world, 0);
    go(
        &mut world,
        &[Work(0, 0), CopyWorker(0, 0), Work(0, 0), Work(0, 0), Again],
    );
    let flight = world.shared.messages[0].flight.clone().unwrap();
    assert_eq!((flight.attempt, flight.text), (1, vec![1]));
    assert_eq!(rest(world).paid, [1]);
}

#[test]
fn s7_a_redelivered_message_is_answered_from_what_was_delivered() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    go(
        &mut world,
        &[
            Step::Relay(0),
            Step::Fault(Empty, 0),
            Notice(0),
            Step::Relay(0),
            Step::Relay(0),
        ],
    );
    go(&mut world, &[Step::Fault(CrashWorker, 0)]);
    take(&mut world, 0, 0);
    assert_eq!(
        world.workers[0].tasks[0].map(|one| one.stage),
        Some(Stage::Done)
    );
    assert!(world.shared.messages[0].flight.is_none());
    let world = rest(world);
    assert_eq!((world.paid, world.responses.len()), (vec![1], 1));
}

#[test]
fn s8_a_message_sent_again_is_told_once() {
    // Its outcome is kept and not delivered.
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 3]);
    assert_eq!(world.shared.clone().admit(0), Admitted::Kept);
    go(&mut world, &[Step::Fault(Resend, 0), Step::Gateway(1)]);
    assert_eq!(rest(world).incoming.len(), 1);
    // It was delivered, and the live frame is still on its way.
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    go(
        &mut world,
        &[Step::Relay(0), Step::Fault(Resend, 0), Step::Gateway(1)],
    );
    assert_eq!(rest(world).incoming.len(), 1);
}

#[test]
fn s9_a_socket_that_dies_in_its_replay_misses_nothing() {
    let mut world = begun(2);
    send(&mut world, 0);
    send(&mut world, 1);
    hear(&mut world);
    go(&mut world, &[Step::Fault(DropSocket, 0)]);
    for record in 0..2 {
        take(&mut world, 0, record);
        go(&mut world, &[Work(0, record); 4]);
        go(&mut world, &[Step::Relay(0)]);
    }
    // Welcome, R0 and R1 are on the wire; the client takes the welcome.
    go(&mut world, &[Connect, Read, Receive]);
    assert_eq!(world.client.seen(0), None);
    let mut again = world.clone();
    again.client.drop_socket();
    let again = rest(again);
    assert_eq!(again.position(), Some(Position::At(1)));
    rest(world);
}

#[test]
fn s10_a_lost_publish_is_found() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0); 4]);
    hear(&mut world);
    go(&mut world, &[Step::Relay(0), Step::Fault(LosePublish, 0)]);
    assert_eq!(world.client.seen(0), None);
    assert!(world.client.misses(&world.shared));
    rest(world);
}

#[test]
fn s11_another_counter_at_the_same_number_is_read() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0)]);
    hear(&mut world);
    let before = (world.shared.n_id, world.shared.n);
    go(&mut world, &[Step::Fault(Empty, 0)]);
    while world.shared.n < before.1 {
        go(&mut world, &[Work(0, 0)]);
    }
    assert_ne!(world.shared.n_id, before.0);
    // Even one whose subscription was not seen to break has to read.
    assert!(world.client.is_stale());
    rest(world);
}

#[test]
fn a_user_who_moved_to_another_partition_is_told_nothing_again() {
    let mut shared = Shared::new(&[0; 3], 200, None);
    let end = crate::reference::End {
        call: 1,
        pieces: 1,
        how: How::Answered,
    };
    let (old, new) = (5, crate::reference::PARTITION);
    for (message, at) in [(0, old), (1, new)] {
        let delivered = shared.deliver(message, at, None, end, false);
        assert_eq!(delivered, Delivered::Published);
    }
    // A relay takes the old partition and goes back in it, and what was late in it comes then.
    shared.out.clear();
    assert_eq!(shared.deliver(0, old, None, end, true), Delivered::Already);
    assert!(shared.out.is_empty());
    let late = shared.deliver(2, old + 1, Some(old), end, false);
    assert_eq!(late, Delivered::Published, "it was not lost");
    assert!(!shared.read(Some(Position::At(new))).recovered);
    let next = shared.deliver(1, new, Some(new), end, true);
    assert_eq!(next, Delivered::Already);
}

#[test]
fn s12_a_mailbox_rebuilt_from_the_middle_does_not_pretend() {
    let mut shared = Shared::new(&[0; 3], 200, None);
    let end = crate::reference::End {
        call: 1,
        pieces: 1,
        how: How::Answered,
    };
    assert_eq!(shared.deliver(1, 5, None, end, false), Delivered::Published);
    assert_eq!(
        shared.deliver(2, 6, Some(5), end, false),
        Delivered::Published
    );
    assert!(!shared.read(Some(Position::At(4))).recovered);
    let look = shared.read(Some(Position::At(5)));
    assert!(look.recovered);
    assert_eq!(look.frames, [(6, 2, end)]);
    assert!(
        !shared.read(Some(Position::At(7))).recovered,
        "beyond the end"
    );
}

#[test]
fn s13_a_worker_that_wakes_up_gets_the_other_ones_outcome() {
    let mut world = begun(1);
    send(&mut world, 0);
    take(&mut world, 0, 0);
    go(&mut world, &[Work(0, 0), Work(0, 0)]);
    assert!(matches!(
        world.workers[0].tasks[0].map(|one| one.stage),
        Some(Stage::Keeps(_))
    ));
    go(
        &mut world,
        &[Step::Fault(Pause, 0), Step::Fault(Fault::MoveWorker, 1)],
    );
    take(&mut world, 1, 0);
    go(&mut world, &[Work(1, 0); 3]);
    let theirs = world.shared.messages[0].ended;
    // It wakes up with its whole answer written.
    go(&mut world, &[Work(0, 0)]);
    let Some(Ended::Outcome(end, _)) = theirs else {
        panic!("no outcome")
    };
    assert_eq!(
        world.workers[0].tasks[0].map(|one| one.stage),
        Some(Stage::Produces(end))
    );
    let world = rest(world);
    assert_eq!(world.client.seen(0), Some(end));
}

#[test]
fn s14_a_cancel_counts_whenever_it_comes() {
    // How far the worker is when the cancel comes: unseen, begun, one piece, all pieces, kept.
    for (far, how) in [
        (0, How::Cancelled),
        (2, How::Cancelled),
        (3, How::Cancelled),
        (4, How::Cancelled),
        (5, How::Answered),
    ] {
        let mut world = begun(1);
        send(&mut world, 0);
        go(&mut world, &vec![Work(0, 0); far]);
        let result = world.shared.clone().cancel(0);
        let expected = if how == How::Cancelled {
            Cancelled::Cancelling
        } else {
            Cancelled::AlreadyDone
        };
        assert_eq!(result, expected, "{far} steps");
        go(&mut world, &[Step::Fault(Cancel, 0)]);
        let world = rest(world);
        assert_eq!(
            world.client.seen(0).map(|end| end.how),
            Some(how),
            "{far} steps"
        );
    }
}

#[test]
fn s15_two_gateways_admit_one_message() {
    let mut world = begun(1);
    go(&mut world, &[Send(0, 0), Step::Fault(Resend, 0)]);
    go(
        &mut world,
        &[
            Step::Gateway(0),
            Step::Gateway(1),
            Step::Gateway(0),
            Step::Gateway(1),
        ],
    );
    assert_eq!(world.incoming, [0, 0], "two records");
    let world = rest(world);
    assert_eq!(world.paid, [1]);
    // The second record's worker may produce the outcome again; it is the same.
    assert!(world.responses.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn what_the_calls_tell_apart() {
    let mut shared = Shared::new(&[0], 200, None);
    let cancelled = crate::reference::End {
        call: 0,
        pieces: 0,
        how: How::Cancelled,
    };
    assert_eq!(shared.live(0, 1, 1, None), Lived::Lost);
    assert_eq!(
        shared.begin(0, 1, 0, cancelled),
        Begun::Attempt {
            number: 1,
            taking: 1
        }
    );
    assert_eq!(shared.live(0, 1, 1, Some((0, 1))), Lived::Written);
    assert_eq!(shared.live(0, 1, 1, Some((0, 1))), Lived::Expected(1));
    assert_eq!(shared.live(0, 2, 1, Some((1, 1))), Lived::Fenced);
    assert!(matches!(shared.begin(0, 2, 0, cancelled), Begun::Busy(_)));
}
