//! The composition root: builds the engines, starts the roles on them, and ends them in order.

use std::net::SocketAddr;
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
pub use engines::Unusable;
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

/// Checks what only those can judge of a configuration who use it: the clients of Kafka and Redis,
/// and who reads the keys of tokens. Nothing is connected to.
///
/// # Errors
/// A property of librdkafka, a Redis URL or a file of keys that can't be used.
pub fn validate(config: &Config) -> Result<(), Unusable> {
    validate_engines(config)?;
    verifier(config).map(|_| ())
}

/// Checks what only the clients of Kafka and Redis can judge.
pub(crate) fn validate_engines(config: &Config) -> Result<(), Unusable> {
    engines::validate(config)
}

/// Reads the keys of signed tokens, where this role checks such tokens.
pub(crate) fn verifier(config: &Config) -> Result<Option<JwtVerifier>, Unusable> {
    if !matches!(config.role(), Role::Gateway | Role::AllInOne) {
        return Ok(None);
    }
    let unusable = |error| {
        Unusable(format!(
            "the keys of tokens can't be used: {error}; put good ones where JWT_PUBLIC_KEY_FILE \
             or JWT_JWKS says"
        ))
    };
    let jwt = config.gateway().jwt;
    jwt.map(|jwt| JwtVerifier::new(&jwt).map_err(unusable))
        .transpose()
}

/// Runs a role until a signal ends it, and then until it has drained.
///
/// # Errors
/// It could not be started, or ended by itself.
pub async fn run(role: Role, config: Config) -> anyhow::Result<()> {
    validate(&config)?;
    let logging = config.logging();
    let _logs = logs::init(&logging)?;
    let drain = CancellationToken::new();
    let stop = CancellationToken::new();
    // Whatever ends this function also ends what runs beside it.
    let _stop = stop.clone().drop_guard();
    tokio::spawn(Signals::new()?.watch(drain.clone()));
    let exporter = Exporter::install(METRICS)?;
    let process_metrics = ProcessMetrics::new(role);
    let exporter = exporter.with_collector(move || process_metrics.update());
    tokio::spawn(exporter.clone().run_upkeep(stop.clone()));
    let exporting = traces::start(&config.traces(), Engines::systems(role))?;
    for notice in config.notices() {
        tracing::warn!("{notice}");
    }

    let address = config.health_listen();
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("{address} can't be listened on; choose another by --port"))?;
    let address = listener.local_addr()?;
    let engines = match role {
        Role::AllInOne => Engines::embedded(&config).await?,
        _ => Engines::distributed(&config)?,
    };
    let local_key = match config.embedded().data_dir {
        Some(folder) if role == Role::AllInOne => {
            let key = SecretString::from(gateway::auth::random_token());
            let holder = InstanceInfo {
                address: reachable(address),
                key: key.clone(),
            };
            let announced = holder.write(&folder);
            announced.with_context(|| format!("{} can't be written", folder.display()))?;
            Some(key)
        }
        _ => None,
    };
    let health = Arc::new(Health::new(engines.names()));
    let state = AdminState::new(
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
        state: Arc::new(state),
        drain,
        stop,
    };
    let watching = app.watch_dependencies();
    tracing::info!(role = role.as_str(), %address, version = env!("CARGO_PKG_VERSION"), "started");
    if role == Role::AllInOne {
        greeting::say(address, &app.config, logging.format == LogFormat::Pretty);
    }
    let result = app.serve(listener).await;
    app.engines.log.flush().await;
    if let Some(exporting) = exporting {
        exporting.finish().await;
    }
    app.stop.cancel();
    watching.await?;
    match &result {
        Ok(()) => tracing::info!("stopped"),
        Err(error) => tracing::error!(error = %format!("{error:#}"), "ended by itself"),
    }
    result
}

struct App {
    role: Role,
    config: Config,
    engines: Engines,
    /// Proves to who may read the data directory that this process works on it.
    local_key: Option<SecretString>,
    health: Arc<Health>,
    state: Arc<AdminState>,
    /// Finish, and end.
    drain: CancellationToken,
    /// What runs beside the roles ends too.
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
            Role::Gateway => self.gateway_alone(listener).await,
            Role::AiWorker => {
                self.with_admin(listener, self.worker(self.drain.clone()))
                    .await
            }
            Role::Relay => {
                self.with_admin(listener, self.relay(self.drain.clone()))
                    .await
            }
            Role::AllInOne => self.all_in_one(listener).await,
        }
    }

    async fn gateway_alone(&self, listener: TcpListener) -> anyhow::Result<()> {
        // Clients are served meanwhile: readiness says whether their messages would be taken.
        let topics = [self.config.gateway().messages_topic];
        let preparing = self.engines.prepare(&self.config, &topics, &self.health);
        let serving = self.gateway(listener, self.drain.clone());
        tokio::pin!(serving);
        tokio::select! {
            result = &mut serving => result,
            () = preparing => serving.await,
        }
    }

    async fn gateway(&self, listener: TcpListener, drain: CancellationToken) -> anyhow::Result<()> {
        let state = Arc::clone(&self.state);
        let parts = gateway::Dependencies {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            settings: self.config.gateway(),
            health: Arc::clone(&self.health),
            admin: Arc::new(move |method, path| admin::respond(path, method, &state)),
            dead_letters: self.engines.own.clone().map(|log| {
                let topics = self.config.dead_letter_topics();
                gateway::DeadLetterAccess {
                    letters: DeadLetterQueue::new(log, topics.to_vec()),
                    local_key: self.local_key.clone(),
                }
            }),
        };
        gateway::serve(listener, parts, drain).await?;
        Ok(())
    }

    async fn worker(&self, drain: CancellationToken) -> anyhow::Result<()> {
        let settings = self.config.worker();
        let pipeline = &settings.pipeline;
        let topics = [
            pipeline.topic.clone(),
            pipeline.dead_letter_topic.clone(),
            settings.responses_topic.clone(),
        ];
        if !self.prepared(&topics, &drain).await {
            return Ok(());
        }
        let parts = ai_worker::Parts {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            provider: provider(&settings)?,
            settings,
        };
        in_a_task(ai_worker::run(parts, drain)).await?;
        Ok(())
    }

    async fn relay(&self, drain: CancellationToken) -> anyhow::Result<()> {
        let settings = self.config.relay();
        let topics = [
            settings.pipeline.topic.clone(),
            settings.pipeline.dead_letter_topic.clone(),
        ];
        if !self.prepared(&topics, &drain).await {
            return Ok(());
        }
        let parts = relay::Parts {
            log: Arc::clone(&self.engines.log),
            fanout: self.engines.fanout.clone(),
            settings,
        };
        in_a_task(relay::run(parts, drain)).await?;
        Ok(())
    }

    /// Waits for the topics, and for the other warnings of the start; false when told to stop.
    async fn prepared(&self, topics: &[String], drain: &CancellationToken) -> bool {
        let preparing = self.engines.prepare(&self.config, topics, &self.health);
        drain.run_until_cancelled(preparing).await.is_some()
    }

    /// Runs a role that clients don't speak to, with its health and metrics beside it.
    async fn with_admin(
        &self,
        listener: TcpListener,
        role: impl Future<Output = anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let serving = tokio::spawn(admin::serve(
            listener,
            Arc::clone(&self.state),
            stop.clone(),
        ));
        let draining = Arc::clone(&self.health);
        let drain = self.drain.clone();
        let telling = tokio::spawn(async move {
            drain.cancelled().await;
            draining.drain();
        });
        let result = role.await;
        telling.abort();
        stop.cancel();
        serving.await?;
        result
    }

    /// The three roles on the embedded engines. The gateway ends first, so that nothing new
    /// comes, with the worker beside it; the relay last, so that what is answered is delivered
    /// or, after the start, will be.
    async fn all_in_one(&self, listener: TcpListener) -> anyhow::Result<()> {
        let last = CancellationToken::new();
        let relay = self.relay(last.clone());
        let others = async {
            let gateway = self.gateway(listener, self.drain.clone());
            let worker = self.worker(self.drain.clone());
            let result = tokio::try_join!(gateway, worker);
            last.cancel();
            result
        };
        let (others, relay) = tokio::join!(others, relay);
        others?;
        relay
    }
}

/// Runs it by the runtime's workers: the thread that waits here has to be woken for each step. Ends
/// it when it is dropped.
async fn in_a_task<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match AbortOnDropHandle::new(tokio::spawn(work)).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only by the runtime's end, and that ends this too.
            Err(_) => std::future::pending().await,
        },
    }
}

fn provider(settings: &WorkerSettings) -> anyhow::Result<Arc<dyn Provider>> {
    if let Some(api) = &settings.model {
        tracing::info!(
            base_url = %api.base_url, model = settings.prompt.model, "answers come from this API"
        );
        return Ok(Arc::new(OpenAi::new(api)?));
    }
    tracing::warn!(
        "answers come from the built-in demo model, which only repeats what it is told: \
         set OPENAI_API_KEY or OPENAI_BASE_URL for a real one"
    );
    Ok(Arc::new(Demo))
}

/// Where a process that listens on `address` is reached from this machine.
fn reachable(address: SocketAddr) -> SocketAddr {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    address
}
