//! A process that has no file descriptors left.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::*;
use crate::support::classic::ClassicClient;

const REFUSED: &str = "accepting a connection failed";

/// Processor time that a process has used, in hundredths of a second.
fn used(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name before may hold anything, but ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn without_descriptors_it_waits_and_those_who_are_in_are_served() {
    let process = ProcessSpec::ephemeral()
        .env("HEAD_TIMEOUT_MS", "600000")
        .max_descriptors(96)
        .start()
        .await;
    // Who only opens connections gives way to others.
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(
            TcpStream::connect(("127.0.0.1", process.port()))
                .await
                .unwrap(),
        );
    }
    process.wait_for_log(REFUSED, TEST_TIMEOUT).await;
    let mut clients = Vec::new();
    let first = timeout(TEST_TIMEOUT, ClassicClient::open(process.port(), "user0")).await;
    clients.push(first.expect("silent connections keep others out"));
    drop(silent);

    // Sockets don't give way: now there is really no room.
    let wait = Duration::from_secs(4);
    loop {
        let user = format!("user{}", clients.len());
        match timeout(wait, ClassicClient::connect(process.port(), "t", &user)).await {
            Ok(Ok(client)) => clients.push(client),
            Ok(Err(_)) | Err(_) => break,
        }
        assert!(clients.len() < 96);
    }
    assert!(clients.len() > 10, "{}", clients.len());
    let waiting = TcpStream::connect(("127.0.0.1", process.port())).await;
    let said = process.log().matches(REFUSED).count();
    let before = used(process.pid());
    sleep(Duration::from_secs(3)).await;
    let used = used(process.pid()) - before;
    assert!(used < 60, "{used} hundredths of a second in three");
    let said = process.log().matches(REFUSED).count() - said;
    assert!((1..20).contains(&said), "said {said} times");
    let answer = clients[0].send_and_wait("is it still there?").await;
    assert_eq!(answer["type"], "response", "{answer}");

    drop((waiting, clients));
    wait_until("it takes connections again", TEST_TIMEOUT, || async {
        process.is_ready().await
    })
    .await;
    ClassicClient::open(process.port(), "late")
        .await
        .send_and_wait("hello")
        .await;
}
