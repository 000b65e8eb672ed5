//! Gives the `dlq` commands access to dead letters in Kafka, in a data directory, or through a
//! running `all-in-one`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::Location;
use crate::config::Config;
use crate::dead_letters::{
    Address, DeadLetter, DeadLetterDetail, DeadLetterQueue, Filter, SettleAction, SettleResult,
};
use crate::http_client;
use crate::log::embedded::EmbeddedLog;
use crate::log::kafka::KafkaLog;
use crate::log::{Log as _, LogBrowser};
use crate::store::{self, InstanceInfo, OpenError, Store};
use crate::tools::print;

/// Error for a request that the server rejected as invalid (status 400), and would reject again if
/// it were repeated.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct RejectedRequest(String);

/// Time limit of one HTTP request. It is long because the server reads all dead letters to list
/// them.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Lists and settles dead letters wherever they are stored.
pub(super) struct DeadLetterAdmin {
    backend: Backend,
    /// Where the dead letters are stored, as text for the operator.
    location: String,
    /// Whether the dead letters are in the data directory of a stopped `all-in-one`, which
    /// processes replayed messages only after its next start.
    is_offline: bool,
}

enum Backend {
    /// This process has opened the log.
    Direct(DeadLetterQueue, Arc<dyn LogBrowser>),
    /// This process sends HTTP requests to a running `all-in-one`.
    Http(HttpClient),
}

/// The HTTP client of a running `all-in-one`.
struct HttpClient {
    client: reqwest::Client,
    base_url: Url,
    admin_key: SecretString,
    /// Whether `admin_key` was read from the data directory; otherwise it is the setting
    /// `ADMIN_KEY`.
    is_key_from_data_dir: bool,
    /// What the operator can check when the server does not answer, or is not the expected process.
    hint: String,
}

impl DeadLetterAdmin {
    pub(super) async fn connect(location: Location) -> anyhow::Result<Self> {
        match location {
            Location::Kafka(config) => {
                let settings = config.kafka();
                let log = KafkaLog::connect(&settings).context("cannot create the Kafka client")?;
                let servers = settings.bootstrap_servers;
                let checked = log.check().await;
                checked.with_context(|| {
                    format!(
                        "Kafka at {servers} does not answer; it was chosen because a KAFKA_… or \
                         REDIS_… setting is present (in .env, the environment or a file); for an \
                         all-in-one use `dlq --data-dir FOLDER`, or `dlq --url URL` while it runs"
                    )
                })?;
                Ok(Self::with_log(
                    Arc::new(log),
                    &config,
                    format!("Kafka at {servers}"),
                    false,
                ))
            }
            Location::Folder(config) => Self::open_folder(config).await,
            Location::Running(config, url) => Self::connect_to_url(&config, &url),
        }
    }

    fn with_log(
        log: Arc<dyn LogBrowser>,
        config: &Config,
        location: String,
        is_offline: bool,
    ) -> Self {
        let queue = DeadLetterQueue::new(log.clone(), config.dead_letter_topics().to_vec());
        Self {
            backend: Backend::Direct(queue, log),
            location,
            is_offline,
        }
    }

    async fn open_folder(config: Config) -> anyhow::Result<Self> {
        let settings = config.embedded();
        let folder = settings.data_dir.clone();
        let folder = folder.context(
            "an all-in-one without a data directory can only be queried while it runs: use --url",
        )?;
        let timeout = config.gateway().produce_timeout;
        if !folder.is_dir() {
            bail!(
                "there is no data directory {}: name one with --data-dir, a running all-in-one \
                 with --url, or Kafka with KAFKA_BOOTSTRAP_SERVERS",
                folder.display()
            );
        }
        let info = store::inspect(&folder);
        let info = info.with_context(|| format!("cannot inspect {}", folder.display()))?;
        if !info.is_initialized {
            bail!(
                "{} is not a data directory of chatmesh: name one with --data-dir, a running \
                 all-in-one with --url, or Kafka with KAFKA_BOOTSTRAP_SERVERS",
                folder.display()
            );
        }
        let opening = {
            let folder = folder.clone();
            tokio::task::spawn_blocking(move || {
                let store = Store::open(&folder, settings.min_free_disk)?;
                anyhow::Ok(EmbeddedLog::open(store, &settings, timeout)?)
            })
        };
        match opening.await? {
            Ok(log) => Ok(Self::with_log(
                Arc::new(log),
                &config,
                folder.display().to_string(),
                true,
            )),
            Err(error) => match error.downcast_ref() {
                Some(OpenError::InUse { pid, .. }) => Self::connect_to_holder(&folder, *pid),
                _ => Err(error),
            },
        }
    }

    /// Connects to the process that has locked the folder, at the address that the process wrote
    /// into the folder. The configured port is not tried: a process with another folder may listen
    /// on it.
    fn connect_to_holder(folder: &Path, pid: Option<u32>) -> anyhow::Result<Self> {
        let folder_name = folder.display();
        if let Some(holder) = InstanceInfo::read(folder) {
            let hint = format!(
                "data directory {folder_name} is in use by the process that should listen there; \
                 if that process is starting or stopping, try again, otherwise name its address \
                 with --url"
            );
            let url = format!("http://{}", holder.address);
            return Self::with_http_client(&url, holder.key, true, hint);
        }
        let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        bail!(
            "data directory {folder_name} is in use by a running chatmesh{pid} that has not \
             written its address there: try again if it is just starting, stop it first, or use \
             --url http://ITS-ADDRESS with its ADMIN_KEY"
        )
    }

    fn connect_to_url(config: &Config, url: &str) -> anyhow::Result<Self> {
        let key = config.gateway().admin_key;
        let key =
            key.context("querying a running all-in-one needs its admin key: set ADMIN_KEY")?;
        let hint = "check that an all-in-one is running there".to_owned();
        Self::with_http_client(url, key, false, hint)
    }

    fn with_http_client(
        url: &str,
        admin_key: SecretString,
        is_key_from_data_dir: bool,
        hint: String,
    ) -> anyhow::Result<Self> {
        let base_url = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut base_url = base_url.context("--url must begin with http:// or https://")?;
        // The URL is printed, so a user name and password are removed. They are not needed, because
        // the admin key authenticates.
        let _ = base_url.set_username("");
        let _ = base_url.set_password(None);
        // Proxies are not used, so that the admin key is sent to this server only.
        let client = http_client::builder_for(&base_url)
            .timeout(REQUEST_TIMEOUT)
            .no_proxy()
            .build()
            .context("cannot create the HTTP client")?;
        Ok(Self {
            location: base_url.to_string(),
            backend: Backend::Http(HttpClient {
                client,
                base_url,
                admin_key,
                is_key_from_data_dir,
                hint,
            }),
            is_offline: false,
        })
    }

    /// Where the dead letters are stored, as text for the operator.
    pub(super) fn location(&self) -> &str {
        &self.location
    }

    pub(super) async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<DeadLetter>> {
        match &self.backend {
            Backend::Direct(queue, _) => Ok(queue.list(filter).await?),
            Backend::Http(client) => client.list(filter).await,
        }
    }

    /// Returns a dead letter with its content as JSON; `None` if there is no dead letter at this
    /// address.
    pub(super) async fn detail(&self, address: &Address) -> anyhow::Result<Option<Value>> {
        match &self.backend {
            Backend::Direct(queue, _) => {
                let detail = queue.detail(address).await?;
                Ok(detail.as_ref().map(DeadLetterDetail::to_json))
            }
            Backend::Http(client) => client.detail(address).await,
        }
    }

    /// Settles dead letters that were just listed. If this process has opened the log, they are not
    /// looked up again.
    pub(super) async fn settle_listed(
        &self,
        listed: &[DeadLetter],
        action: SettleAction,
    ) -> anyhow::Result<Vec<SettleResult>> {
        let queue = match &self.backend {
            Backend::Direct(queue, _) => queue,
            Backend::Http(client) => {
                let addresses = listed.iter().map(|dead_letter| dead_letter.address.clone());
                return client.settle(&addresses.collect::<Vec<_>>(), action).await;
            }
        };
        let mut results = Vec::with_capacity(listed.len());
        for dead_letter in listed {
            let result = queue.settle(dead_letter, action).await;
            results.push(SettleResult::new(dead_letter.address.clone(), result));
        }
        Ok(results)
    }

    /// Looks up the dead letters at these addresses, and settles them.
    pub(super) async fn settle_at(
        &self,
        addresses: &[Address],
        action: SettleAction,
    ) -> anyhow::Result<Vec<SettleResult>> {
        match &self.backend {
            Backend::Direct(queue, _) => Ok(queue.settle_at(addresses, action).await?),
            Backend::Http(client) => client.settle(addresses, action).await,
        }
    }

    /// Prints when replayed messages are answered, unless they are answered at once.
    pub(super) fn print_replay_hint(&self) -> anyhow::Result<()> {
        if self.is_offline {
            print("replayed messages are answered when all-in-one is started again\n")?;
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Backend::Direct(queue, log) = self.backend {
            log.flush().await;
            // Dropping the store blocks until its threads have ended, so it is not done on a thread
            // of the async runtime.
            let _ = tokio::task::spawn_blocking(move || drop((queue, log))).await;
        }
    }
}

impl HttpClient {
    /// Sends a request. Returns the JSON body of a response with status 200, and `None` for status
    /// 404; any other status is an error.
    async fn request(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Option<Value>> {
        let mut url = self.base_url.clone();
        let prefix = self.base_url.path().trim_end_matches('/');
        url.set_path(&format!("{prefix}{path}"));
        url.query_pairs_mut().clear().extend_pairs(query);
        let request = self
            .client
            .request(method, url)
            .bearer_auth(self.admin_key.expose_secret());
        let reply = request.send().await.map_err(reqwest::Error::without_url);
        let reply =
            reply.with_context(|| format!("{} does not answer: {}", self.base_url, self.hint))?;
        let status = reply.status();
        let body: Value = reply.json().await.unwrap_or_default();
        match status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::UNAUTHORIZED if self.is_key_from_data_dir => {
                bail!("{}: {}", self.base_url, self.hint)
            }
            StatusCode::UNAUTHORIZED => bail!(
                "{} refused ADMIN_KEY: set the key of that server",
                self.base_url
            ),
            StatusCode::NOT_FOUND => Ok(None),
            status => {
                let reason = body["message"].as_str().unwrap_or("no reason given");
                let text = format!("{} answered {status}: {reason}", self.base_url);
                if status == StatusCode::BAD_REQUEST {
                    return Err(RejectedRequest(text).into());
                }
                bail!(text)
            }
        }
    }

    /// The error for a server that answers requests for dead letters with 404.
    fn missing_route_error(&self) -> anyhow::Error {
        if self.is_key_from_data_dir {
            return anyhow::anyhow!("{} serves no dead letters: {}", self.base_url, self.hint);
        }
        anyhow::anyhow!(
            "{} serves no dead letters: it must be an all-in-one that was started with ADMIN_KEY; \
             in a deployment with Kafka, set KAFKA_BOOTSTRAP_SERVERS instead of --url",
            self.base_url
        )
    }

    async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<DeadLetter>> {
        #[derive(Deserialize)]
        struct Response {
            letters: Vec<DeadLetter>,
        }
        let mut query = Vec::new();
        query.extend(filter.topic.clone().map(|topic| ("topic", topic)));
        query.extend(filter.code.clone().map(|code| ("code", code)));
        query.extend(filter.since_ms.map(|since| ("since_ms", since.to_string())));
        query.extend(filter.limit.map(|limit| ("limit", limit.to_string())));
        let listed = self.request(Method::GET, "/dead-letters", &query).await?;
        let listed = listed.ok_or_else(|| self.missing_route_error())?;
        Ok(serde_json::from_value::<Response>(listed)?.letters)
    }

    async fn detail(&self, address: &Address) -> anyhow::Result<Option<Value>> {
        let path = format!("/dead-letters/{address}");
        self.request(Method::GET, &path, &[]).await
    }

    async fn settle(
        &self,
        addresses: &[Address],
        action: SettleAction,
    ) -> anyhow::Result<Vec<SettleResult>> {
        #[derive(Deserialize)]
        struct Response {
            settled: Vec<SettleResult>,
        }
        let path = format!("/dead-letters/{}", action.as_str());
        let addresses = addresses
            .iter()
            .map(|address| ("address", address.to_string()));
        let response = self
            .request(Method::POST, &path, &addresses.collect::<Vec<_>>())
            .await?;
        let response = response.ok_or_else(|| self.missing_route_error())?;
        Ok(serde_json::from_value::<Response>(response)?.settled)
    }
}
