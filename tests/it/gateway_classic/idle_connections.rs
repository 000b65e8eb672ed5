//! Connections that send nothing, an incomplete head, or more than the limits allow, and requests
//! with a foreign host name.

use tokio::time::Instant;

use super::*;

const HEAD_TIMEOUT: Duration = Duration::from_millis(400);

fn bounded_settings(max_http_connections: usize) -> GatewaySettings {
    GatewaySettings {
        limits: ConnectionLimits {
            http: max_http_connections,
            ..ConnectionLimits::default()
        },
        head_timeout: HEAD_TIMEOUT,
        ..settings()
    }
}

/// Waits until the gateway closes the connection without a response. Returns the time of the close.
async fn wait_until_closed(mut stream: TcpStream) -> Instant {
    let mut response = Vec::new();
    // A reset counts as closed.
    let read = timeout(TEST_TIMEOUT, stream.read_to_end(&mut response)).await;
    let _ = read.expect("the connection was not closed");
    assert!(
        response.is_empty(),
        "{}",
        String::from_utf8_lossy(&response)
    );
    Instant::now()
}

#[tokio::test]
async fn incomplete_head_is_timed_out_even_if_bytes_keep_arriving() {
    let gateway = start(bounded_settings(0)).await;
    let start = Instant::now();
    let silent = TcpStream::connect(gateway.addr).await.unwrap();
    let incomplete = TcpStream::connect(gateway.addr).await.unwrap();
    let (mut read, mut write) = incomplete.into_split();
    let byte_writer = tokio::spawn(async move {
        for byte in b"GET /ws?userid=alice&token=t HTTP/1.1\r\nX-Long: "
            .iter()
            .cycle()
        {
            if write.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut response = Vec::new();
    let _ = timeout(TEST_TIMEOUT, read.read_to_end(&mut response))
        .await
        .unwrap();
    assert!(response.is_empty() && start.elapsed() >= HEAD_TIMEOUT);
    byte_writer.abort();
    assert!(wait_until_closed(silent).await - start >= HEAD_TIMEOUT);
    // A complete request is answered.
    let (status, _, _) = gateway.http("GET /health HTTP/1.1").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn silent_connections_do_not_lock_out_others() {
    let gateway = start(GatewaySettings {
        // No connection is closed by its own timeout.
        head_timeout: TEST_TIMEOUT * 3,
        ..bounded_settings(8)
    })
    .await;
    let mut alice = gateway.connect("alice").await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let health = timeout(TEST_TIMEOUT, gateway.http("GET /health HTTP/1.1"));
    assert_eq!(health.await.unwrap().0, 200);
    let bob = timeout(TEST_TIMEOUT, gateway.connect("bob")).await;
    bob.unwrap().expect_no_frame().await;
    // WebSockets are not evicted.
    alice.expect_no_frame().await;
    wait_until_closed(silent.remove(0)).await;
}

#[tokio::test]
async fn oversized_head_is_refused() {
    let gateway = start(bounded_settings(0)).await;
    let large = "x".repeat(40_000);
    for head in [
        format!("GET /health HTTP/1.1\r\nX-Large: {large}"),
        format!("GET /health?{large} HTTP/1.1"),
        format!("GET /health HTTP/1.1\r\n{}X: y", "X: y\r\n".repeat(500)),
    ] {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        let request = format!("{head}\r\nHost: {}\r\n\r\n", gateway.addr);
        // The gateway may refuse before the whole request is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        let read = timeout(TEST_TIMEOUT, stream.read_exact(&mut answer)).await;
        if read.expect("neither a response nor a close").is_ok() {
            let answer = String::from_utf8_lossy(&answer);
            assert!(
                ["HTTP/1.1 431", "HTTP/1.1 414", "HTTP/1.1 400"].contains(&&*answer),
                "{answer}"
            );
        }
    }
    assert_eq!(gateway.http("GET /health HTTP/1.1").await.0, 200);
}

#[tokio::test]
async fn oversized_frame_and_oversized_fragmented_message_are_refused() {
    let gateway = start(settings()).await;
    // This header announces a masked text frame of 2^62 bytes. The payload is not sent.
    let oversized_header = [0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    // These two fragments of 60,000 bytes are together above the limit.
    let mut fragment = vec![0x01, 0xfe, 0xea, 0x60, 0, 0, 0, 0];
    fragment.extend(std::iter::repeat_n(b'x', 60_000));
    let mut continuation = fragment.clone();
    continuation[0] = 0;
    for bytes in [oversized_header.to_vec(), [fragment, continuation].concat()] {
        let mut client = gateway.connect("alice").await;
        client.stream.get_mut().write_all(&bytes).await.unwrap();
        assert_eq!(client.close_code().await, 1009);
    }
}

#[tokio::test]
async fn dns_rebinding_reads_neither_health_nor_metrics() {
    let gateway = start(settings()).await;
    for path in [
        "/health",
        "/metrics",
        "/health/live",
        "/conversations?userid=a",
    ] {
        let head = format!("GET {path} HTTP/1.1\r\nHost: rebound.example:8000");
        assert_eq!(gateway.http(&head).await.0, 403, "{path}");
    }
    let request = "GET /health HTTP/1.1\r\nHost: localhost:8000";
    assert_eq!(gateway.http(request).await.0, 200);
    // With real tokens, a gateway may be reached by any name.
    let gateway = start(GatewaySettings {
        auth: AuthMode::Stored,
        ..settings()
    })
    .await;
    let request = "GET /health HTTP/1.1\r\nHost: chat.example";
    assert_eq!(gateway.http(request).await.0, 200);
}
