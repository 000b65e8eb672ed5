//! The composition root, which the command line calls: creates the engines, runs the roles on them,
//! and drains the roles in order.
//!
//! Architecture invariant: only this module knows which engines a process runs on, and which roles.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::ai_worker::provider::Provider;
use crate::ai_worker::provider::demo::Demo;
use crate::ai_worker::provider::openai::OpenAi;
use crate::config::settings::{LogFormat, WorkerSettings};
use crate::config::{Config, Role};
use crate::dead_letters::DeadLetterQueue;
use crate::gateway::auth::jwt::JwtVerifier;
use crate::health::Health;
use crate::signals::Signals;
use crate::store::InstanceInfo;
use crate::telemetry::admin::{self, AdminState};
use crate::telemetry::metrics::{Exporter, Metric};
use crate::telemetry::{logs, traces};
use crate::{ai_worker, gateway, log, pipeline, relay};

mod dependencies;
mod engines;
mod greeting;
mod process_metrics;

use engines::Engines;
pub use engines::UnusableSetting;
use process_metrics::ProcessMetrics;

/// The metrics of all components. The exporter describes each and sets the buckets of histograms.
pub const METRICS: &[&[&Metric]] = &[
    process_metrics::ALL,
    gateway::metrics::ALL,
    log::kafka::metrics::ALL,
    pipeline::metrics::ALL,
    ai_worker::provider::metrics::ALL,
    relay::metrics::ALL,
    traces::metrics::ALL,
    ai_worker::metrics::ALL,
];

/// Validates the settings that only the clients of Kafka and Redis and the verifier of signed
/// tokens understand. Connects to nothing.
///
/// # Errors
/// A property of librdkafka, a URL of Redis or a file of keys can't be used.
pub fn validate(config: &Config) -> Result<(), UnusableSetting> {
    validate_engines(config)?;
    token_verifier(config).map(|_| ())
}

/// Validates the settings that only the clients of Kafka and Redis understand.
pub(crate) fn validate_engines(config: &Config) -> Result<(), UnusableSetting> {
    engines::validate(config)
}

/// Creates the verifier of signed tokens; `None` if this process verifies no signed tokens.
pub(crate) fn token_verifier(config: &Config) -> Result<Option<JwtVerifier>, UnusableSetting> {
    if !matches!(config.role(), Role::Gateway | Role::AllInOne) {
        return Ok(None);
    }
    let unusable = |error| {
        UnusableSetting(format!(
            "the keys of tokens can't be used: {error}; put good ones where JWT_PUBLIC_KEY_FILE \
             or JWT_JWKS says"
        ))
    };
    let jwt = config.gateway().jwt;
    jwt.map(|jwt| JwtVerifier::new(&jwt).map_err(unusable))
        .transpose()
}

/// Runs a role until a signal, then drains it.
///
/// # Errors
/// The role could not start, or exited unexpectedly.
pub async fn run(role: Role, config: Config) -> anyhow::Result<()> {
    validate(&config)?;
    let logging = config.logging();
    let _logs = logs::init(&logging)?;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    // The guard cancels `stop` at every exit from this function, so that the background tasks end.
    let _stop = stop.clone().drop_guard();
    tokio::spawn(Signals::new()?.watch(drain.clone()));
    let exporter = Exporter::install(METRICS)?;
    let process_metrics = ProcessMetrics::new(role);
    let exporter = exporter.with_collector(move || process_metrics.update());
    tokio::spawn(exporter.clone().run_upkeep(stop.clone()));
    let trace_export = traces::start(&config.traces(), Engines::messaging_systems(role))?;
    for notice in config.notices() {
        tracing::warn!("{notice}");
    }

    let address = config.health_address();
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| listen_error(address, &error))?;
    let address = listener.local_addr()?;
    let engines = match role {
        Role::AllInOne => Engines::embedded(&config).await?,
        _ => Engines::distributed(&config)?,
    };
    let local_key = match config.embedded().data_dir {
        Some(data_dir) if role == Role::AllInOne => Some(write_instance_info(&data_dir, address)?),
        _ => None,
    };
    let health = Arc::new(Health::new(engines.dependency_names()));
    let admin = AdminState::new(
        role.service(),
        config.server_id(),
        Arc::clone(&health),
        exporter,
    );
    let app = App {
        role,
        config,
        engines,
        local_key,
        health,
        admin: Arc::new(admin),
        drain,
        stop,
    };
    let dependency_watch = app.watch_dependencies();
    tracing::info!(role = role.as_str(), %address, version = env!("CARGO_PKG_VERSION"), "started");
    if role == Role::AllInOne {
        greeting::print(address, &app.config, logging.format == LogFormat::Pretty);
    }
    let result = app.serve(listener).await;
    app.engines.log.flush().await;
    if let Some(trace_export) = trace_export {
        trace_export.finish().await;
    }
    app.stop.cancel();
    dependency_watch.await?;
    match &result {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => {
            tracing::error!(error = %format!("{error:#}"), "exited unexpectedly, restart the process");
        }
    }
    result
}

/// Writes this process's address and a new random key into the data directory, so that the tools
/// find the process that uses it. Returns the key.
fn write_instance_info(data_dir: &Path, address: SocketAddr) -> anyhow::Result<SecretString> {
    let key = SecretString::from(gateway::auth::random_token());
    let instance = InstanceInfo {
        address: reachable_address(address),
        key: key.clone(),
    };
    instance
        .write(data_dir)
        .with_context(|| format!("{} can't be written", data_dir.display()))?;
    Ok(key)
}

/// A process that runs one role, or all three as `all-in-one`.
struct App {
    role: Role,
    config: Config,
    engines: Engines,
    /// The key that this process has written into its data directory. A caller that presents the
    /// key has proved that it can read that directory. `None` without a data directory.
    local_key: Option<SecretString>,
    health: Arc<Health>,
    admin: Arc<AdminState>,
    /// Cancelled by the first signal: the roles finish their work and end.
    drain: CancellationToken,
    /// Cancelled after the roles have ended: background tasks end.
    stop: CancellationToken,
}

impl App {
    fn watch_dependencies(&self) -> JoinHandle<()> {
        tokio::spawn(dependencies::watch(
            self.engines.dependencies(&self.config),
            Arc::clone(&self.health),
            self.stop.clone(),
        ))
    }

    async fn serve(&self, listener: TcpListener) -> anyhow::Result<()> {
        match self.role {
            Role::Gateway => self.run_gateway_only(listener).await,
            Role::AiWorker => {
                self.run_with_admin(listener, self.run_worker(self.drain.clone()))
                    .await
            }
            Role::Relay => {
                self.run_with_admin(listener, self.run_relay(self.drain.clone()))
                    .await
            }
            Role::AllInOne => self.run_all_in_one(listener).await,
        }
    }

    async fn run_gateway_only(&self, listener: TcpListener) -> anyhow::Result<()> {
        // The gateway does not wait for its topic, so that clients can connect before the topic
        // exists. Until then the process is not ready.
        let topics = [self.config.gateway().messages_topic];
        let preparing = self.engines.prepare(&self.config, &topics, &self.health);
        let serving = self.run_gateway(listener, self.drain.clone());
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => result,
            () = preparing => serving.await,
        }
    }

    async fn run_gateway(
        &self,
        listener: TcpListener,
        drain: CancellationToken,
    ) -> anyhow::Result<()> {
        let admin = Arc::clone(&self.admin);
        let dependencies = gateway::Dependencies {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            settings: self.config.gateway(),
            health: Arc::clone(&self.health),
            admin: Arc::new(move |method, path| admin::respond(path, method, &admin)),
            dead_letters: self.engines.exclusive_log.clone().map(|log| {
                let topics = self.config.dead_letter_topics();
                gateway::DeadLetterAccess {
                    queue: DeadLetterQueue::new(log, topics.to_vec()),
                    local_key: self.local_key.clone(),
                }
            }),
        };
        gateway::serve(listener, dependencies, drain).await?;
        Ok(())
    }

    async fn run_worker(&self, drain: CancellationToken) -> anyhow::Result<()> {
        let settings = self.config.worker();
        let pipeline = &settings.pipeline;
        let topics = [
            pipeline.topic.clone(),
            pipeline.dead_letter_topic.clone(),
            settings.responses_topic.clone(),
        ];
        if !self.prepare_engines(&topics, &drain).await {
            return Ok(());
        }
        let dependencies = ai_worker::Dependencies {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            provider: create_provider(&settings)?,
            settings,
        };
        run_as_task(ai_worker::run(dependencies, drain)).await?;
        Ok(())
    }

    async fn run_relay(&self, drain: CancellationToken) -> anyhow::Result<()> {
        let settings = self.config.relay();
        let topics = [
            settings.pipeline.topic.clone(),
            settings.pipeline.dead_letter_topic.clone(),
        ];
        if !self.prepare_engines(&topics, &drain).await {
            return Ok(());
        }
        let dependencies = relay::Dependencies {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            settings,
        };
        run_as_task(relay::run(dependencies, drain)).await?;
        Ok(())
    }

    /// Prepares the engines for a role. False if the drain began before the engines were ready.
    async fn prepare_engines(&self, topics: &[String], drain: &CancellationToken) -> bool {
        let preparing = self.engines.prepare(&self.config, topics, &self.health);
        drain.run_until_cancelled(preparing).await.is_some()
    }

    /// Runs a role that has no HTTP server of its own, together with an HTTP server for its health
    /// and metrics.
    async fn run_with_admin(
        &self,
        listener: TcpListener,
        role: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let serving = tokio::spawn(admin::serve(
            listener,
            Arc::clone(&self.admin),
            stop.clone(),
        ));
        let health = Arc::clone(&self.health);
        let drain = self.drain.clone();
        let drain_watch = tokio::spawn(async move {
            drain.cancelled().await;
            health.drain();
        });
        let result = role.await;
        drain_watch.abort();
        stop.cancel();
        serving.await?;
        result
    }

    /// Runs the three roles on the embedded engines. Gateway and worker drain first, so that no new
    /// messages and answers are created; the relay drains last, to deliver the remaining answers.
    /// Answers that the relay has not delivered by then are delivered after the next start.
    async fn run_all_in_one(&self, listener: TcpListener) -> anyhow::Result<()> {
        let relay_drain = CancellationToken::new();
        let relay = self.run_relay(relay_drain.clone());
        let gateway_and_worker = async {
            let gateway = self.run_gateway(listener, self.drain.clone());
            let worker = self.run_worker(self.drain.clone());
            let result = tokio::try_join!(gateway, worker);
            relay_drain.cancel();
            result
        };
        let (gateway_and_worker, relay) = tokio::join!(gateway_and_worker, relay);
        gateway_and_worker?;
        relay
    }
}

/// Runs a future as a task on the runtime's worker threads, because the thread of `block_on` has to
/// be woken for each step. Dropping this future aborts the task.
async fn run_as_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(output) => output,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The task was cancelled, which happens only when the runtime shuts down. The runtime
            // then drops this future too, so it waits for that.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Creates the client of the model's API if an API is configured, otherwise the demo model.
fn create_provider(settings: &WorkerSettings) -> anyhow::Result<Arc<dyn Provider>> {
    if let Some(api) = &settings.model {
        tracing::info!(
            base_url = %api.base_url, model = settings.prompt.model, "using the configured model API"
        );
        return Ok(Arc::new(OpenAi::new(api)?));
    }
    tracing::warn!(
        "using the built-in demo model, which only repeats the messages: set OPENAI_API_KEY or \
         OPENAI_BASE_URL for a real one"
    );
    Ok(Arc::new(Demo))
}

/// The error of a failed bind, with what the operator can do about it.
fn listen_error(address: SocketAddr, error: &std::io::Error) -> anyhow::Error {
    let advice = match error.kind() {
        ErrorKind::AddrInUse => "choose another port by --port",
        ErrorKind::AddrNotAvailable => {
            "this machine does not have that address: choose another by --host"
        }
        _ => "choose another address by --host and --port",
    };
    anyhow::anyhow!("can't listen on {address}: {error}; {advice}")
}

/// Returns the address at which this machine reaches a process that listens on `address`.
pub(crate) fn reachable_address(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcard_address_is_reached_on_loopback() {
        let reached = |text: &str| reachable_address(text.parse().unwrap()).to_string();
        assert_eq!(reached("0.0.0.0:8002"), "127.0.0.1:8002");
        assert_eq!(reached("[::]:1"), "[::1]:1");
        assert_eq!(reached("10.1.2.3:1"), "10.1.2.3:1");
    }
}
