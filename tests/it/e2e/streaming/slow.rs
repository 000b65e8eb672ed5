//! Readers that fall behind.

use std::sync::Arc;
use std::time::Duration;

use super::words;
use crate::support::model::Script;
use crate::support::v1::{Device, Transcript};
use crate::support::world::World;
use crate::support::{eventually, unique};

/// All of it is more than the kernel holds back for a reader that doesn't read (up to 4 MiB).
const ANSWERS: usize = 24;
const PIECES: usize = 57;

fn has_all(transcript: &Transcript) -> bool {
    let whole = transcript
        .all()
        .filter(|m| m.text.contains(&format!("p{} ", PIECES - 1)));
    whole.count() == ANSWERS
}

pub(super) async fn slow_readers_get_snapshots_and_dead_ones_are_closed(world: Arc<World>) {
    let user = unique("slow");
    let mut watcher = Device::open(world.port(0), &user).await;
    let mut slow = Device::new(&user).small_window();
    let mut dead = Device::new(&user).small_window();
    slow.connect(world.port(0)).await;
    dead.connect(world.port(0)).await;
    let filler = words("x", 800);
    let ids: Vec<String> = (0..ANSWERS).map(|n| format!("m-{n}")).collect();
    for id in &ids {
        let prompt = unique("flood");
        let mut script = Script::new().role();
        for piece in 0..PIECES {
            script = script.token(&format!("p{piece} {filler}"));
            script = script.wait(Duration::from_millis(20));
        }
        script = script.wait(Duration::from_secs(6)).token("the end");
        world
            .model()
            .next_for(&prompt, script.finish("stop").usage().done());
        watcher.say_in(id, id, &prompt).await;
    }
    watcher.until("all is written but the ends", has_all).await;
    let open = watcher
        .transcript
        .all()
        .filter(|m| m.terminal.is_none())
        .count();
    assert!(open > 0, "too late: nothing is being written any more");
    let all: Vec<&str> = ids.iter().map(String::as_str).collect();
    slow.until_ended(&all).await;
    assert!(slow.is_connected(), "a snapshot was enough");
    let snapshots: usize = slow.transcript.all().map(|m| m.snapshots).sum();
    assert!(
        snapshots > 0,
        "it never fell behind: this test shows nothing"
    );
    watcher.until_ended(&all).await;
    assert_eq!(slow.transcript.ends(), watcher.transcript.ends());
    for id in &ids {
        assert!(slow.shown(id).text.ends_with("the end"), "{id}");
    }

    let gateway = &world.gateways[0];
    eventually(
        "the dead reader is given up",
        Duration::from_secs(40),
        || async {
            gateway.log().contains("slow_consumer")
                || metric_names_it(&gateway.url("/metrics")).await
        },
    )
    .await;
    let code = dead.expect_close().await;
    // The close frame waits behind what the reader left in the kernel, and not for ever.
    assert!([Some(4409), None].contains(&code), "{code:?}");
    let welcome = dead.connect(world.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    dead.until_ended(&all).await;
    assert_eq!(dead.transcript.ends(), watcher.transcript.ends());
}

async fn metric_names_it(url: &str) -> bool {
    let text = crate::support::http::get(url).await.body;
    text.lines()
        .any(|line| line.contains("slow_consumer") && !line.ends_with(" 0"))
}
