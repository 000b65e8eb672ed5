//! Connections that say nothing, too little, or too much before they are WebSockets.

use tokio::time::Instant;

use super::*;

const HEAD: Duration = Duration::from_millis(400);

fn bounded(http: usize) -> GatewaySettings {
    GatewaySettings {
        limits: ConnectionLimits {
            http,
            ..ConnectionLimits::default()
        },
        head_timeout: HEAD,
        ..settings()
    }
}

/// When the server ends it, without a word.
async fn ended(mut stream: TcpStream) -> Instant {
    let mut said = Vec::new();
    // A reset is an end too.
    let read = timeout(PATIENCE, stream.read_to_end(&mut said)).await;
    let _ = read.expect("it was not ended");
    assert!(said.is_empty(), "{}", String::from_utf8_lossy(&said));
    Instant::now()
}

#[tokio::test]
async fn a_head_has_a_time_however_it_comes() {
    let gateway = start(bounded(0)).await;
    let began = Instant::now();
    let silent = TcpStream::connect(gateway.addr).await.unwrap();
    let half = TcpStream::connect(gateway.addr).await.unwrap();
    let (mut read, mut write) = half.into_split();
    let dripping = tokio::spawn(async move {
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
    let mut said = Vec::new();
    let _ = timeout(PATIENCE, read.read_to_end(&mut said))
        .await
        .unwrap();
    assert!(said.is_empty() && began.elapsed() >= HEAD);
    dripping.abort();
    assert!(ended(silent).await - began >= HEAD);
    // Who asks for something is not silent, and may ask again.
    let (status, _, _) = gateway.http("GET /health HTTP/1.1").await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn a_crowd_that_says_nothing_does_not_keep_others_out() {
    let gateway = start(GatewaySettings {
        // None of them ends by its own time.
        head_timeout: PATIENCE * 3,
        ..bounded(8)
    })
    .await;
    let mut alice = gateway.connect("alice").await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(gateway.addr).await.unwrap());
    }
    let asked = timeout(PATIENCE, gateway.http("GET /health HTTP/1.1"));
    assert_eq!(asked.await.unwrap().0, 200);
    let came = timeout(PATIENCE, gateway.connect("bob"));
    came.await.unwrap().expect_no_frame().await;
    // Sockets are not among those who make room.
    alice.expect_no_frame().await;
    ended(silent.remove(0)).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let gateway = start(bounded(0)).await;
    let large = "x".repeat(40_000);
    for head in [
        format!("GET /health HTTP/1.1\r\nX-Large: {large}"),
        format!("GET /health?{large} HTTP/1.1"),
        format!("GET /health HTTP/1.1\r\n{}X: y", "X: y\r\n".repeat(500)),
    ] {
        let mut stream = TcpStream::connect(gateway.addr).await.unwrap();
        let request = format!("{head}\r\nHost: {}\r\n\r\n", gateway.addr);
        // It may be refused before all of it is written.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = [0; 12];
        let read = timeout(PATIENCE, stream.read_exact(&mut answer)).await;
        if read.expect("no end came").is_ok() {
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
async fn a_frame_is_refused_by_its_announced_size_and_a_message_by_its_sum() {
    let gateway = start(settings()).await;
    // A masked text frame of 2^62 bytes, and nothing of it.
    let announced = [0x81, 0xff, 0x40, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4];
    // Fragments of 60,000 bytes that never end.
    let mut fragment = vec![0x01, 0xfe, 0xea, 0x60, 0, 0, 0, 0];
    fragment.extend(std::iter::repeat_n(b'x', 60_000));
    let mut further = fragment.clone();
    further[0] = 0;
    for bytes in [announced.to_vec(), [fragment, further].concat()] {
        let mut client = gateway.connect("alice").await;
        client.stream.get_mut().write_all(&bytes).await.unwrap();
        assert_eq!(client.closed().await, 1009);
    }
}

#[tokio::test]
async fn a_name_that_was_pointed_here_reads_neither_health_nor_metrics() {
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
    let named = "GET /health HTTP/1.1\r\nHost: localhost:8000";
    assert_eq!(gateway.http(named).await.0, 200);
    // With tokens that mean something a gateway may stand behind any name.
    let stored = start(GatewaySettings {
        auth: AuthMode::Stored,
        ..settings()
    })
    .await;
    let named = "GET /health HTTP/1.1\r\nHost: chat.example";
    assert_eq!(stored.http(named).await.0, 200);
}
