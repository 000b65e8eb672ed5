//! How the gateway serves the files of the page.

use reqwest::Method;

use crate::support::http::{self, Reply};
use crate::support::process::{ChatmeshProcess, ProcessSpec};

async fn call(
    server: &ChatmeshProcess,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
) -> Reply {
    http::try_call(method, &server.url(path), headers)
        .await
        .unwrap()
}

/// The token source in the page of a server with these settings.
async fn token_source(settings: &[(&str, &str)]) -> String {
    let mut spec = ProcessSpec::ephemeral();
    for (name, value) in settings {
        spec = spec.env(name, value);
    }
    let server = spec.start().await;
    let page = http::get(&server.url("/")).await.body;
    let (_, rest) = page.split_once("chatmesh-token\" content=\"").unwrap();
    rest.split('"').next().unwrap().to_owned()
}

#[tokio::test]
async fn files_have_their_type_a_strict_policy_and_an_etag() {
    let server = ProcessSpec::ephemeral().start().await;
    let page = http::get(&server.url("/")).await.body;
    let linked: Vec<&str> = page
        .split('"')
        .filter(|part| part.starts_with("app/"))
        .collect();
    assert!(linked.len() >= 5, "{linked:?}");
    assert!(
        !page.contains("://"),
        "expected no reference to another host"
    );
    let mut paths = vec!["/".to_owned(), "/test-ui.html".to_owned()];
    paths.extend(["/chatmesh.js".to_owned(), "/chatmesh.d.ts".to_owned()]);
    paths.extend(linked.iter().map(|path| format!("/{path}")));
    for path in &paths {
        let reply = call(&server, Method::GET, path, &[]).await;
        assert_eq!(reply.status, 200, "{path}");
        let content_type = match path.rsplit('.').next().unwrap() {
            "js" => "text/javascript; charset=utf-8",
            "css" => "text/css; charset=utf-8",
            "svg" => "image/svg+xml",
            "ts" => "text/plain; charset=utf-8",
            _ => "text/html; charset=utf-8",
        };
        assert_eq!(reply.header("content-type"), Some(content_type), "{path}");
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(reply.header("cache-control"), Some("no-cache"));
        let policy = reply.header("content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        let socket_url = format!("ws://127.0.0.1:{}", server.port());
        assert!(policy.contains(&socket_url), "{policy}");
        assert!(!policy.contains("unsafe") && !policy.contains('*'));

        let head = call(&server, Method::HEAD, path, &[]).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""), "{path}");
        assert_eq!(
            head.header("content-length"),
            reply.header("content-length")
        );

        let etag = reply.header("etag").unwrap();
        let etag_list = format!("\"other\", W/{etag}");
        for validator in [etag, &etag_list, "*"] {
            let revalidated =
                call(&server, Method::GET, path, &[("if-none-match", validator)]).await;
            assert_eq!(
                (revalidated.status, revalidated.body.as_str()),
                (304, ""),
                "{path}"
            );
            assert_eq!(revalidated.header("etag"), Some(etag));
        }
        let other_etag = [("if-none-match", "\"other\"")];
        assert_eq!(
            call(&server, Method::GET, path, &other_etag).await.status,
            200
        );
        let post = call(&server, Method::POST, path, &[]).await;
        assert_eq!(post.status, 405, "{path}");
        assert_eq!(post.header("allow"), Some("GET, HEAD"));
    }
    let client_file = call(&server, Method::GET, "/chatmesh.js", &[]).await;
    let allowed_origin = client_file.header("access-control-allow-origin");
    assert_eq!(
        allowed_origin,
        Some("*"),
        "expected that pages of other origins may import the client"
    );
    for path in [
        "/app",
        "/app/",
        "/app/main.js/",
        "/app/../index.html",
        "/index.html",
    ] {
        assert_eq!(
            call(&server, Method::GET, path, &[]).await.status,
            404,
            "{path}"
        );
    }
}

#[tokio::test]
async fn page_contains_its_token_source_and_can_be_disabled() {
    assert_eq!(token_source(&[]).await, "any");
    let stored_tokens = ("AUTH_MODE", "stored");
    assert_eq!(token_source(&[stored_tokens]).await, "ask");
    let open_endpoint = ("TOKEN_ENDPOINT", "open");
    assert_eq!(
        token_source(&[stored_tokens, open_endpoint]).await,
        "endpoint"
    );

    let server = ProcessSpec::ephemeral()
        .env("CHAT_PAGE", "off")
        .start()
        .await;
    for path in ["/", "/test-ui.html", "/chatmesh.js", "/app/main.js"] {
        assert_eq!(
            call(&server, Method::GET, path, &[]).await.status,
            404,
            "{path}"
        );
    }
    assert_eq!(http::get(&server.url("/health")).await.status, 200);
}

#[tokio::test]
async fn startup_message_contains_the_page_address() {
    let server = ProcessSpec::ephemeral().start().await;
    let page = format!("http://127.0.0.1:{}/", server.port());
    server
        .wait_for_log(&page, crate::support::TEST_TIMEOUT)
        .await;
}
