//! A process that has run out of file descriptors.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::*;
use crate::support::classic::ClassicClient;

const ACCEPT_FAILURE: &str = "accepting a connection failed";

/// CPU time of a process, in hundredths of a second.
fn cpu_time(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The command name before these fields may contain spaces and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn process_without_descriptors_waits_and_serves_open_connections() {
    let process = ProcessSpec::ephemeral()
        .env("HEAD_TIMEOUT_MS", "600000")
        .max_descriptors(96)
        .start()
        .await;
    // Silent connections are evicted in favour of others.
    let mut silent = Vec::new();
    for _ in 0..150 {
        silent.push(
            TcpStream::connect(("127.0.0.1", process.port()))
                .await
                .unwrap(),
        );
    }
    process.wait_for_log(ACCEPT_FAILURE, TEST_TIMEOUT).await;
    let mut clients = Vec::new();
    let first_client = timeout(TEST_TIMEOUT, ClassicClient::open(process.port(), "user0")).await;
    clients.push(first_client.expect("silent connections lock out others"));
    drop(silent);

    // WebSockets are not evicted, so now no descriptor can be freed.
    let connect_limit = Duration::from_secs(4);
    loop {
        let user = format!("user{}", clients.len());
        match timeout(
            connect_limit,
            ClassicClient::connect(process.port(), "t", &user),
        )
        .await
        {
            Ok(Ok(client)) => clients.push(client),
            Ok(Err(_)) | Err(_) => break,
        }
        assert!(clients.len() < 96, "more clients than descriptors");
    }
    assert!(clients.len() > 10, "only {} clients", clients.len());
    let unaccepted = TcpStream::connect(("127.0.0.1", process.port())).await;
    let failures_before = process.log().matches(ACCEPT_FAILURE).count();
    let cpu_before = cpu_time(process.pid());
    // The test measures over a fixed time that the accept loop neither spins nor floods the log.
    sleep(Duration::from_secs(3)).await;
    let cpu_used = cpu_time(process.pid()) - cpu_before;
    assert!(
        cpu_used < 60,
        "used {cpu_used} hundredths of a second of CPU in three seconds"
    );
    let failures = process.log().matches(ACCEPT_FAILURE).count() - failures_before;
    assert!((1..20).contains(&failures), "logged {failures} times");
    let answer = clients[0].send_and_wait("is it still there?").await;
    assert_eq!(answer["type"], "response", "{answer}");

    drop((unaccepted, clients));
    wait_until("connections are accepted again", TEST_TIMEOUT, || async {
        process.is_ready().await
    })
    .await;
    ClassicClient::open(process.port(), "late")
        .await
        .send_and_wait("hello")
        .await;
}
