//! Something dies, sleeps or forgets while an answer is being written.

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::{MAILBOX_FRAMES, words};
use crate::support::client::Classic;
use crate::support::model::Script;
use crate::support::proxy::LossyRedis;
use crate::support::v1::{Device, Transcript};
use crate::support::world::{A_WHILE, Backend, History, World};
use crate::support::{SOON, eventually, unique};

const PACE: Duration = Duration::from_millis(80);

/// A user with a message that has ended, an answer that is being written, and a device that went
/// away before all of that.
struct Scene {
    user: String,
    prompt: String,
    text: String,
    device: Device,
    away: Device,
}

impl Scene {
    async fn set(world: &World, count: usize) -> Self {
        let user = unique("fault");
        let prompt = unique("growing");
        let text = words("grown", count);
        world
            .model()
            .next_for(&prompt, Script::say(&text).paced(PACE));
        let mut away = Device::open(world.port(1), &user).await;
        away.drop_connection();
        let mut device = Device::open(world.port(0), &user).await;
        device.ask("m-0", &unique("before")).await;
        device.say("m-1", &prompt).await;
        device.until_text("m-1", "grown4 ").await;
        Self {
            user,
            prompt,
            text,
            device,
            away,
        }
    }

    /// All devices end with the right text, and so does the history.
    async fn check(mut self, world: &World) {
        let ports = world.ports();
        let messages = [("m-1", self.prompt.as_str())];
        self.device.carry_through(&ports, &messages).await;
        let shown = self.device.shown("m-1");
        assert_eq!(shown.ended(), Some("response"), "{shown:?}");
        assert_eq!(shown.text, self.text);
        let calls = world.model().count_for(&self.prompt);
        assert!(calls <= 2, "{calls} calls of the model");
        let history = History::new(world.port(1), &self.user);
        let message_id = self.device.transcript.message_id("m-1").unwrap().to_owned();
        let turn = history
            .turn("default", &message_id)
            .await
            .expect("in the history");
        assert_eq!(turn.answer, self.text);
        // Who was away gets what it missed, or is told that it can't.
        let before = self.away.transcript.reloads();
        self.away.connect_patiently(&[world.port(1)]).await;
        if self.away.transcript.reloads() == before {
            self.away.until_ended(&["m-0", "m-1"]).await;
            assert_eq!(self.away.shown("m-1").text, self.text);
        }
        // And it goes on, for both.
        let next = unique("afterwards");
        self.device.say("m-2", &next).await;
        for device in [&mut self.device, &mut self.away] {
            let end = device.end_of("m-2").await;
            assert_eq!(end["content"], format!("echo: {next}"));
        }
        // What the relay delivers again comes to nobody twice.
        self.device.expect_silence(A_WHILE).await;
    }
}

pub(super) async fn redis_is_emptied(world: &mut World) {
    let scene = Scene::set(world, 50).await;
    world.flush_redis();
    scene.check(world).await;
}

pub(super) async fn redis_is_restarted(world: &mut World) {
    let scene = Scene::set(world, 60).await;
    world.restart_redis().await;
    scene.check(world).await;
}

pub(super) async fn a_gateway_is_killed(world: &mut World) {
    let scene = Scene::set(world, 50).await;
    world.gateways[0].kill9();
    let spec = world.gateways[0].spec().clone();
    world.gateways[0] = spec.start().await;
    scene.check(world).await;
}

pub(super) async fn a_relay_is_killed(world: &mut World) {
    let scene = Scene::set(world, 40).await;
    world.relays[0].kill9();
    let spec = world.relays[0].spec().clone();
    world.relays[0] = spec.start().await;
    scene.check(world).await;
}

/// The text of the first attempt must not be in the second's, which goes on for long enough.
fn two_attempts(world: &World, prompt: &str, first: Script) -> String {
    let whole = words("second", 60);
    world.model().next_for(prompt, first);
    world
        .model()
        .next_for(prompt, Script::say(&whole).paced(PACE));
    whole
}

pub(super) async fn a_worker_is_killed_and_another_begins_anew(world: &mut World) {
    let prompt = unique("killed");
    let first = Script::say(&words("first", 400)).paced(PACE);
    let whole = two_attempts(world, &prompt, first);
    let mut device = Device::open(world.port(0), &unique("fault")).await;
    device.say("m-1", &prompt).await;
    device.until_text("m-1", "first4 ").await;
    let worker = world.worker_of(&prompt);
    world.workers[worker].kill9();
    let restarted = |t: &Transcript| t.get("m-1").is_some_and(|m| m.restarts == 1);
    device.until("the answer begins anew", restarted).await;
    assert_eq!(device.shown("m-1").text, "");
    device.until_text("m-1", "second0 ").await;
    let begun = device
        .frames
        .iter()
        .rev()
        .find(|frame| frame["type"] == "delta")
        .unwrap();
    assert_eq!(begun["attempt"], 2, "{begun}");
    let end = device.end_of("m-1").await;
    assert_eq!(end["content"], whole.as_str());
    assert_eq!(end["attempt"], 2);
    assert_eq!(device.shown("m-1").accepted.len(), 1);
    let spec = world.workers[worker].spec().clone();
    world.workers[worker] = spec.start().await;
}

pub(super) async fn a_worker_sleeps_past_its_session_and_is_fenced(world: &mut World) {
    let prompt = unique("asleep");
    let first = Script::say(&words("first", 4000)).paced(Duration::from_millis(20));
    let whole = two_attempts(world, &prompt, first);
    let user = unique("fault");
    let mut device = Device::open(world.port(0), &user).await;
    let mut phone = Device::open(world.port(1), &user).await;
    device.say("m-1", &prompt).await;
    device.until_text("m-1", "first4 ").await;
    let worker = world.worker_of(&prompt);
    world.workers[worker].stop();
    // Past its lease and its session another one takes over.
    device.until_text("m-1", "second4 ").await;
    assert!(!device.shown("m-1").text.contains("first"), "spliced");
    // It wakes with a full buffer of the old text, and believes that it owns the message.
    world.workers[worker].cont();
    eventually("the old call is closed", SOON, || async {
        world.model().closed_early().contains(&prompt)
    })
    .await;
    for socket in [&mut device, &mut phone] {
        let end = socket.end_of("m-1").await;
        assert_eq!(end["content"], whole.as_str());
        assert_eq!(socket.shown("m-1").restarts, 1);
        assert_eq!(socket.transcript.strays, 0);
        socket.expect_silence(A_WHILE).await;
    }
    let turns = History::new(world.port(0), &user).turns("default").await;
    assert_eq!(turns.len(), 1, "{turns:?}");
    assert_eq!(turns[0].answer, whole);
    assert_eq!(world.model().count_for(&prompt), 2);
}

pub(super) async fn a_drained_gateway_sends_its_clients_to_another(world: &mut World) {
    const COUNT: usize = 8;
    let text = words("drained", 50);
    let mut devices = Vec::new();
    for _ in 0..COUNT {
        let prompt = unique("drained");
        world
            .model()
            .next_for(&prompt, Script::say(&text).paced(PACE));
        let mut device = Device::open(world.port(0), &unique("fault")).await;
        device.say("m-1", &prompt).await;
        devices.push((device, prompt));
    }
    for (device, _) in &mut devices {
        device.until_text("m-1", "drained1 ").await;
    }
    let other = [world.port(1)];
    world.gateways[0].term();
    let come_back = devices.iter_mut().map(|(device, prompt)| async {
        assert_eq!(device.expect_close().await, Some(1001));
        let closing = device.frames.last().unwrap().clone();
        assert_eq!(closing["type"], "closing", "{closing}");
        let pause = closing["retry_after_ms"].as_u64().unwrap();
        tokio::time::sleep(Duration::from_millis(pause.min(3000))).await;
        device
            .carry_through(&other, &[("m-1", prompt.as_str())])
            .await;
        assert_eq!(device.shown("m-1").text, text);
        assert_eq!(device.shown("m-1").restarts, 0);
        assert_eq!(device.transcript.reloads(), 1, "it had a good position");
        assert_eq!(world.model().count_for(prompt), 1);
    });
    join_all(come_back).await;
    let status = world.gateways[0].wait_exit(SOON).await;
    assert_eq!(status.code(), Some(0));
    let spec = world.gateways[0].spec().clone();
    world.gateways[0] = spec.start().await;
}

pub(super) async fn a_lost_publish_of_an_end_is_found(world: &mut World) {
    // Where the subscribers' connections break, whatever was published meanwhile is lost.
    let user = unique("fault");
    let prompt = unique("broken");
    let text = words("broken", 30);
    world
        .model()
        .next_for(&prompt, Script::say(&text).paced(PACE));
    let mut device = Device::open(world.port(0), &user).await;
    let mut classic = Classic::open(world.port(1), &user).await;
    device.say("m-1", &prompt).await;
    device.until_text("m-1", "broken9 ").await;
    let began = Instant::now();
    while began.elapsed() < PACE * 25 {
        match &world.stack().cluster {
            Some(cluster) => cluster.kill_subscribers(),
            None => world.stack().redis.kill_subscribers(),
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(device.end_of("m-1").await["content"], text.as_str());
    assert_eq!(classic.frame().await["content"], text.as_str());
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );

    if world.backend != Backend::Redis {
        return;
    }
    // Where only this one message is lost, nothing shows it.
    let proxy = LossyRedis::start(world.stack().redis.port()).await;
    let spec = world
        .gateway("server_3")
        .env("REDIS_PORT", &proxy.port().to_string());
    let behind = spec.start().await;
    let mut watcher = Device::new(&user);
    // Until it can listen again, a gateway takes nobody in.
    watcher.connect_patiently(&[world.port(0)]).await;
    let mut device = Device::new(&user);
    device.connect_patiently(&[behind.port()]).await;
    let mut classic = Classic::open(behind.port(), &user).await;
    let prompt = unique("lost");
    let script = Script::say("it is here").paced(Duration::from_millis(300));
    world.model().next_for(&prompt, script);
    device.say("m-2", &prompt).await;
    device.until_text("m-2", "it").await;
    proxy.lose(&format!("user:{user}"));
    watcher.until_ended(&["m-2"]).await;
    let ended = Instant::now();
    assert_eq!(device.end_of("m-2").await["content"], "it is here");
    assert_eq!(classic.frame().await["content"], "it is here");
    assert!(
        proxy.count() > 0,
        "nothing was lost: this test shows nothing"
    );
    let took = ended.elapsed();
    assert!(took < Duration::from_secs(7), "found after {took:?}");
}

pub(super) async fn a_trimmed_mailbox_says_so_and_the_history_is_whole(world: &mut World) {
    let user = unique("fault");
    let mut away = Device::open(world.port(1), &user).await;
    away.drop_connection();
    let mut device = Device::open(world.port(0), &user).await;
    let mut asked = Vec::new();
    let mut half = None;
    for n in 0..MAILBOX_FRAMES + 2 {
        let prompt = unique("trimmed");
        device.ask(&format!("m-{n}"), &prompt).await;
        asked.push(prompt);
        if n == MAILBOX_FRAMES - 1 {
            half = device.transcript.position.clone();
        }
    }
    let welcome = away.connect(world.port(1)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    away.expect_silence(A_WHILE).await;
    let turns = History::new(world.port(1), &user).turns("default").await;
    let questions: Vec<_> = turns
        .iter()
        .rev()
        .filter_map(|turn| turn.question.clone())
        .collect();
    assert_eq!(questions, asked);
    // From the position of that `welcome` on it misses nothing.
    away.drop_connection();
    device.ask("last", &unique("after")).await;
    let welcome = away.connect(world.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    away.until_ended(&["last"]).await;
    // What is still in the mailbox is replayed.
    let mut recent = Device::new(&user);
    recent.transcript.position = half;
    let welcome = recent.connect(world.port(1)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    recent.until_ended(&["m-48", "m-49", "last"]).await;
    recent.expect_silence(A_WHILE).await;
}

/// The operator made `responses` anew, and says so by `LOG_EPOCH`.
pub(super) async fn positions_of_another_epoch_are_worth_nothing(world: &mut World) {
    let user = unique("fault");
    let mut away = Device::open(world.port(0), &user).await;
    let (before, after) = (unique("before"), unique("after"));
    away.ask("m-1", &before).await;
    away.drop_connection();
    let mut online = Device::open(world.port(0), &user).await;
    if world.backend == Backend::Embedded {
        world.gateways[0].drain().await;
        let spec = world.gateways[0].spec().clone().env("LOG_EPOCH", "1");
        world.gateways[0] = spec.start().await;
        online.connect(world.port(0)).await;
    } else {
        for relay in &mut world.relays {
            relay.drain().await;
            let spec = relay.spec().clone().env("LOG_EPOCH", "1");
            *relay = spec.start().await;
        }
    }
    online.ask("m-2", &after).await;
    let welcome = away.connect(world.port(1)).await;
    assert_eq!(welcome["recovered"], false, "{welcome}");
    let turns = History::new(world.port(1), &user).turns("default").await;
    let questions: Vec<_> = turns
        .iter()
        .rev()
        .filter_map(|turn| turn.question.clone())
        .collect();
    assert_eq!(questions, [before, after]);
    let end = away.ask("m-3", &unique("third")).await;
    assert_eq!(end["type"], "response", "{end}");
    online.until_ended(&["m-3"]).await;
    for device in [&mut away, &mut online] {
        device.expect_silence(A_WHILE).await;
    }
}

/// One process with everything: killed and started again on its folder.
pub(super) async fn everything_is_killed_and_the_text_begins_anew(world: &mut World) {
    let prompt = unique("killed");
    let first = Script::say(&words("first", 400)).paced(PACE);
    let whole = two_attempts(world, &prompt, first);
    let mut device = Device::open(world.port(0), &unique("fault")).await;
    let done = device.ask("m-0", &unique("done")).await;
    device.say("m-1", &prompt).await;
    device.until_text("m-1", "first4 ").await;
    world.gateways[0].kill9();
    assert_eq!(device.expect_close().await, None);
    let spec = world.gateways[0].spec().clone();
    world.gateways[0] = spec.start().await;
    let welcome = device.connect(world.port(0)).await;
    assert_eq!(welcome["recovered"], true, "{welcome}");
    let end = device.end_of("m-1").await;
    assert_eq!(end["content"], whole.as_str());
    // The first is where it was.
    device.say("m-0", "whatever").await;
    let again = |t: &Transcript| t.get("m-0").is_some_and(|m| m.repeated == 1);
    device.until("the stored answer comes", again).await;
    assert_eq!(device.frames.last(), Some(&done));
}
