//! Connections to Redis for the calls and the feeds: builds and closes clients, counts disruptions,
//! and translates the client library's errors.

use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, EventInterface};
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, ConnectHandle};
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::settings::RedisSettings;
use crate::fanout::{FanoutError, Result};

/// Number of commands queued inside the client from which on calls are refused at once. The
/// client's own limit is off: after it has refused one command, the client no longer flushes single
/// commands.
pub(super) const MAX_QUEUED_COMMANDS: usize = 10_000;
/// Number of redirections (MOVED, ASK) that the client of the calls follows for one command. The
/// client library must follow no ASK: it takes the next reply on the connection to the new server
/// for the reply to its ASKING, although that may be the reply to an earlier command. Each command
/// in flight would then get the reply to another one. After MOVED, the library loads the cluster's
/// topology before the command fails, so that a repeat reaches the new server.
pub(super) const CALL_REDIRECTIONS: u32 = 0;
/// Number of redirections that the client of a feed follows for one command. Redis never answers a
/// subscription with ASK.
pub(super) const FEED_REDIRECTIONS: u32 = 5;
/// Text of the client library's error for a command whose redirection it does not follow.
const REDIRECTED: &str = "Too many redirections.";
/// Maximum number of published frames queued between the connection and the feed.
const MAX_QUEUED_FRAMES: usize = 16_384;
/// Shortest delay between two attempts to connect, in milliseconds.
const RECONNECT_MIN_MS: u32 = 50;
/// Longest delay between two attempts to connect, in milliseconds.
const RECONNECT_MAX_MS: u32 = 1000;

/// Builds a client that is not connected. After `connect`, it connects in the background and
/// retries without limit. It follows at most `max_redirections` redirections for one command.
/// Returns an error if the URL can't be used.
pub(super) fn client(settings: &RedisSettings, max_redirections: u32) -> Result<Client> {
    let unusable_url_error = |error: &Error| {
        // The error's own text is omitted, because it may quote the URL with its password.
        FanoutError::Unexpected(format!(
            "the redis url can't be used ({}): check REDIS_URL",
            error.kind().to_str()
        ))
    };
    let mut config = Config::from_url(settings.url.expose_secret())
        .map_err(|error| unusable_url_error(&error))?;
    // With `fail_fast` the client would give up if its first attempt to connect failed.
    config.fail_fast = false;
    let timeout = settings.command_timeout;
    let connection_config = ConnectionConfig {
        connection_timeout: timeout.max(Duration::from_secs(1)),
        internal_command_timeout: timeout.max(Duration::from_secs(1)),
        max_command_buffer_len: 0,
        max_redirections,
        // Only this timeout detects a server that vanished without closing the connection.
        unresponsive: UnresponsiveConfig {
            max_timeout: Some((timeout * 2).max(Duration::from_secs(4))),
            interval: Duration::from_secs(1),
        },
        reconnect_on_auth_error: true,
        tcp: TcpConfig {
            nodelay: Some(true),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    };
    let performance_config = PerformanceConfig {
        default_command_timeout: timeout,
        broadcast_channel_capacity: MAX_QUEUED_FRAMES,
        ..PerformanceConfig::default()
    };
    Builder::from_config(config)
        .set_connection_config(connection_config)
        .set_performance_config(performance_config)
        .set_policy(ReconnectPolicy::new_exponential(
            0,
            RECONNECT_MIN_MS,
            RECONNECT_MAX_MS,
            2,
        ))
        .build()
        .map_err(|error| unusable_url_error(&error))
}

/// The error of a call that Redis did not answer in time.
pub(super) fn no_answer() -> FanoutError {
    FanoutError::Unavailable("redis did not answer in time".into())
}

/// The error of a call that is refused because too many commands are queued.
pub(super) fn too_many_calls() -> FanoutError {
    FanoutError::Unavailable("too many calls wait for redis".into())
}

/// Whether a command failed because the server redirected it to another server (MOVED, ASK).
pub(super) fn is_redirection(error: &Error) -> bool {
    error.details() == REDIRECTED
}

/// Translates an error of the client library: temporary failures become
/// [`FanoutError::Unavailable`], failures that an operator has to mend
/// [`FanoutError::Unexpected`].
pub(super) fn fanout_error(client: &Client, error: &Error) -> FanoutError {
    if is_redirection(error) {
        return FanoutError::Unavailable("redis answered MOVED or ASK".into());
    }
    let details = error.details();
    // The first word is Redis's error code. The words after it may quote a command's arguments.
    let code = details.split_whitespace().next().unwrap_or_default();
    match code {
        "READONLY" => {
            // The connected master was demoted to a replica. A reconnect finds the new master.
            let client = client.clone();
            tokio::spawn(async move {
                if let Err(error) = client.force_reconnection().await {
                    tracing::debug!(%error, "redis reconnect after READONLY failed");
                }
            });
            return FanoutError::Unavailable("this redis server is a replica now".into());
        }
        "LOADING" | "BUSY" | "CLUSTERDOWN" | "TRYAGAIN" | "MASTERDOWN" | "NOREPLICAS" | "MOVED"
        | "ASK" => return FanoutError::Unavailable(format!("redis answered {code}")),
        "OOM" | "MISCONF" | "NOPERM" | "WRONGTYPE" | "NOSCRIPT" | "NOAUTH" | "WRONGPASS"
        | "ERR" => {
            let details: String = details.chars().take(200).collect();
            return FanoutError::Unexpected(details);
        }
        _ => {}
    }
    match error.kind() {
        ErrorKind::Timeout => no_answer(),
        ErrorKind::Backpressure => too_many_calls(),
        ErrorKind::IO
        | ErrorKind::Canceled
        | ErrorKind::Routing
        | ErrorKind::Cluster
        | ErrorKind::Sentinel
        | ErrorKind::Tls => {
            FanoutError::Unavailable(format!("redis is out of reach ({})", error.kind().to_str()))
        }
        ErrorKind::Unknown => FanoutError::Unavailable("redis is out of reach".into()),
        kind => FanoutError::Unexpected(kind.to_str().to_owned()),
    }
}

/// Closes a client. Waits for at most one second, because `quit` may wait for an unreachable
/// server.
pub(super) async fn close(client: &Client, connect_handle: &ConnectHandle) {
    let _ = tokio::time::timeout(Duration::from_secs(1), client.quit()).await;
    connect_handle.abort();
}

/// Connects in the background, and counts in `disruptions` the events after which data may be lost:
/// each reconnect (a failover that sentinel makes leads to a reconnect) and each change of a
/// cluster's topology. Closes the client at `stop`.
pub(super) fn connect_and_count(
    client: &Client,
    disruptions: watch::Sender<u64>,
    stop: CancellationToken,
) {
    let mut reconnects = client.reconnect_rx();
    let mut cluster_changes = client.cluster_change_rx();
    let connect_handle = client.connect();
    let client = client.clone();
    tokio::spawn(async move {
        let connected = async {
            // If the connection is established between the check and the wait, the wait misses it.
            // Each wait therefore ends after one second, and the check is repeated.
            while !client.is_connected() {
                let _ =
                    tokio::time::timeout(Duration::from_secs(1), client.wait_for_connect()).await;
            }
        };
        tokio::select! {
            () = connected => {}
            () = stop.cancelled() => {
                close(&client, &connect_handle).await;
                return;
            }
        }
        // The client library announces the first connections too, but these are no disruptions.
        while reconnects.try_recv().is_ok() {}
        while cluster_changes.try_recv().is_ok() {}
        loop {
            // A `Lagged` error means that announcements were dropped, so it counts as a disruption.
            tokio::select! {
                event = reconnects.recv() => {
                    if matches!(event, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                        break;
                    }
                    tracing::info!("redis reconnected");
                }
                event = cluster_changes.recv() => {
                    if matches!(event, Err(tokio::sync::broadcast::error::RecvError::Closed)) {
                        break;
                    }
                    tracing::info!("redis cluster topology changed");
                }
                () = stop.cancelled() => {
                    close(&client, &connect_handle).await;
                    break;
                }
            }
            disruptions.send_modify(|count| *count += 1);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::bounds::Bounds;

    fn settings(url: &str) -> RedisSettings {
        RedisSettings {
            url: url.into(),
            command_timeout: Duration::from_secs(2),
            bounds: Bounds::default(),
        }
    }

    #[test]
    fn client_is_built_for_every_kind_of_url() {
        for url in [
            "redis://localhost:6379",
            "redis://user:secret@localhost:6379/3",
            "rediss://:secret@localhost:6380",
            "redis-cluster://localhost:7000?node=localhost:7001",
            "rediss-cluster://localhost:7000",
            "redis-sentinel://localhost:26379?sentinelServiceName=main",
        ] {
            assert!(client(&settings(url), CALL_REDIRECTIONS).is_ok(), "{url}");
        }
    }

    #[test]
    fn unusable_url_is_refused_without_showing_its_password() {
        for url in [
            "",
            "redis://:s3cret@host:notaport",
            "redis-sentinel://:s3cret@h:1",
        ] {
            let error = client(&settings(url), CALL_REDIRECTIONS)
                .err()
                .map(|error| error.to_string());
            let error = error.expect(url);
            assert!(
                error.contains("REDIS_URL") && !error.contains("s3cret"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn operator_errors_are_distinguished_from_temporary_ones() {
        let client = client(&settings("redis://localhost:1"), CALL_REDIRECTIONS).unwrap();
        for (text, is_temporary) in [
            ("LOADING Redis is loading the dataset in memory", true),
            ("CLUSTERDOWN The cluster is down", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            ("WRONGTYPE Operation against a key", false),
            ("OOM command not allowed", false),
            ("ERR user_script:1: no", false),
        ] {
            let error = fanout_error(&client, &Error::new(ErrorKind::Unknown, text));
            assert_eq!(
                matches!(error, FanoutError::Unavailable(_)),
                is_temporary,
                "{text}"
            );
        }
        for error in [
            Error::new(ErrorKind::Timeout, "Request timed out."),
            Error::new(ErrorKind::Routing, REDIRECTED),
        ] {
            assert!(matches!(
                fanout_error(&client, &error),
                FanoutError::Unavailable(_)
            ));
        }
    }
}
