//! Where dead letters are worked on: Kafka, a data directory, or a running `all-in-one`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use reqwest::{Method, StatusCode};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use super::Place;
use crate::config::Config;
use crate::http_client;
use crate::log::embedded::EmbeddedLog;
use crate::log::kafka::KafkaLog;
use crate::log::{Log as _, LogBrowser};
use crate::pipeline::letters::{Address, Filter, Letter, Letters, Opened, Settled};
use crate::store::{self, Holder, OpenError, Store};
use crate::tools::print;

/// A settled letter costs a running `all-in-one` two writes; a list reads every letter.
const ASK: Duration = Duration::from_secs(60);

pub(super) struct Desk {
    work: Work,
    place: String,
    /// What is replayed waits for somebody to start.
    stopped: bool,
}

enum Work {
    Here(Letters, Arc<dyn LogBrowser>),
    There(Running),
}

/// A running `all-in-one`.
struct Running {
    client: reqwest::Client,
    base: Url,
    key: SecretString,
    /// Whether the key is that of the data directory's holder.
    holder: bool,
    /// What to look at when it does not answer.
    hint: String,
}

impl Desk {
    pub(super) async fn open(place: Place) -> anyhow::Result<Self> {
        match place {
            Place::Kafka(config) => {
                let settings = config.kafka();
                let log = KafkaLog::connect(&settings).context("Kafka's client can't be made")?;
                let servers = settings.bootstrap_servers;
                let known = log.check().await;
                known.with_context(|| {
                    format!(
                        "Kafka at {servers} can't be asked, which KAFKA_… or REDIS_… names (in .env, \
                         the environment or a file); for an all-in-one say `dlq --data-dir FOLDER`, \
                         or `dlq --url URL` while it runs"
                    )
                })?;
                Ok(Self::here(
                    Arc::new(log),
                    &config,
                    format!("Kafka at {servers}"),
                    false,
                ))
            }
            Place::Folder(config) => Self::folder(config).await,
            Place::Running(config, url) => Self::running(&config, &url),
        }
    }

    fn here(log: Arc<dyn LogBrowser>, config: &Config, place: String, stopped: bool) -> Self {
        let letters = Letters::new(log.clone(), config.dead_letter_topics().to_vec());
        Self {
            work: Work::Here(letters, log),
            place,
            stopped,
        }
    }

    async fn folder(config: Config) -> anyhow::Result<Self> {
        let settings = config.embedded();
        let folder = settings.data_dir.clone();
        let folder = folder.context(
            "an all-in-one that keeps all in memory can only be asked \
            while it runs: use --url",
        )?;
        let timeout = config.gateway().produce_timeout;
        if !folder.is_dir() {
            bail!(
                "there is no data directory {}: name one by --data-dir, a running all-in-one by \
                 --url, or Kafka by KAFKA_BOOTSTRAP_SERVERS",
                folder.display()
            );
        }
        let seen = store::look(&folder);
        let seen = seen.with_context(|| format!("{} can't be looked at", folder.display()))?;
        if !seen.made {
            bail!(
                "{} is no data directory of chatmesh: name one by --data-dir, a running \
                 all-in-one by --url, or Kafka by KAFKA_BOOTSTRAP_SERVERS",
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
            Ok(log) => Ok(Self::here(
                Arc::new(log),
                &config,
                folder.display().to_string(),
                true,
            )),
            Err(error) => match error.downcast_ref() {
                Some(OpenError::Held { pid, .. }) => Self::held(&folder, *pid),
                _ => Err(error),
            },
        }
    }

    /// A process has the folder: it is asked itself, where it says in the folder how. Nobody else
    /// is: who listens on the configured port may work on another folder.
    fn held(folder: &Path, pid: Option<u32>) -> anyhow::Result<Self> {
        let shown = folder.display();
        if let Some(holder) = Holder::of(folder) {
            let hint = format!(
                "data directory {shown} is in use by who should listen there; if it is starting \
                 or stopping, try again, otherwise name its address by --url"
            );
            return Self::asking(
                &format!("http://{}", holder.address),
                holder.key,
                true,
                hint,
            );
        }
        let pid = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
        bail!(
            "data directory {shown} is in use by a running chatmesh{pid} that does not say there \
             how it is asked: try again if it is just starting, or stop it first, or use --url \
             http://ITS-ADDRESS with its ADMIN_KEY"
        )
    }

    fn running(config: &Config, url: &str) -> anyhow::Result<Self> {
        let key = config.gateway().admin_key;
        let key = key.context("a running all-in-one is asked with its admin key: set ADMIN_KEY")?;
        Self::asking(url, key, false, "is all-in-one running there?".to_owned())
    }

    fn asking(url: &str, key: SecretString, holder: bool, hint: String) -> anyhow::Result<Self> {
        let base = Url::parse(url)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut base = base.context("--url must begin with http:// or https://")?;
        // The admin key lets in, and what is shown of the address must hold no password.
        let _ = base.set_username("");
        let _ = base.set_password(None);
        // The key goes to nobody else.
        let client = http_client::for_server(&base)
            .timeout(ASK)
            .no_proxy()
            .build()
            .context("the HTTP client can't be made")?;
        Ok(Self {
            place: base.to_string(),
            work: Work::There(Running {
                client,
                base,
                key,
                holder,
                hint,
            }),
            stopped: false,
        })
    }

    /// For people.
    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<Letter>> {
        match &self.work {
            Work::Here(letters, _) => Ok(letters.list(filter).await?),
            Work::There(running) => running.list(filter).await,
        }
    }

    pub(super) async fn open_letter(&self, address: &Address) -> anyhow::Result<Option<Value>> {
        match &self.work {
            Work::Here(letters, _) => {
                let opened = letters.open(address).await?;
                Ok(opened.as_ref().map(Opened::to_json))
            }
            Work::There(running) => running.open_letter(address).await,
        }
    }

    /// Of letters that were just listed.
    pub(super) async fn settle_listed(
        &self,
        listed: &[Letter],
        replay: bool,
    ) -> anyhow::Result<Vec<Settled>> {
        let letters = match &self.work {
            Work::Here(letters, _) => letters,
            Work::There(running) => {
                let addresses = listed.iter().map(|letter| letter.address.clone());
                return running.settle(&addresses.collect::<Vec<_>>(), replay).await;
            }
        };
        let mut settled = Vec::with_capacity(listed.len());
        for letter in listed {
            let result = if replay {
                letters.replay(letter).await
            } else {
                letters.drop(letter).await
            };
            settled.push(Settled::new(letter.address.clone(), result));
        }
        Ok(settled)
    }

    pub(super) async fn settle(
        &self,
        addresses: &[Address],
        replay: bool,
    ) -> anyhow::Result<Vec<Settled>> {
        match &self.work {
            Work::Here(letters, _) => Ok(letters.settle_at(addresses, replay).await?),
            Work::There(running) => running.settle(addresses, replay).await,
        }
    }

    pub(super) fn after_replay(&self) -> anyhow::Result<()> {
        if self.stopped {
            print("they are answered when all-in-one is started again\n")?;
        }
        Ok(())
    }

    pub(super) async fn close(self) {
        if let Work::Here(letters, log) = self.work {
            log.flush().await;
            // The store's threads are joined in its drop.
            let _ = tokio::task::spawn_blocking(move || drop((letters, log))).await;
        }
    }
}

impl Running {
    async fn ask(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
    ) -> anyhow::Result<Option<Value>> {
        let mut url = self.base.clone();
        let prefix = self.base.path().trim_end_matches('/');
        url.set_path(&format!("{prefix}{path}"));
        url.query_pairs_mut().clear().extend_pairs(query);
        let request = self
            .client
            .request(method, url)
            .bearer_auth(self.key.expose_secret());
        let reply = request.send().await.map_err(reqwest::Error::without_url);
        let reply =
            reply.with_context(|| format!("{} can't be asked: {}", self.base, self.hint))?;
        let status = reply.status();
        let body: Value = reply.json().await.unwrap_or_default();
        match status {
            StatusCode::OK => Ok(Some(body)),
            StatusCode::UNAUTHORIZED if self.holder => bail!("{}: {}", self.base, self.hint),
            StatusCode::UNAUTHORIZED => bail!("{}: ADMIN_KEY is not the one there", self.base),
            StatusCode::NOT_FOUND => Ok(None),
            status => bail!(
                "{} answered {status}: {}",
                self.base,
                body["message"].as_str().unwrap_or("no reason given")
            ),
        }
    }

    fn no_route(&self) -> anyhow::Error {
        if self.holder {
            return anyhow::anyhow!("{} serves no dead letters: {}", self.base, self.hint);
        }
        anyhow::anyhow!(
            "{} serves no dead letters: it must be an all-in-one that was started with ADMIN_KEY; \
             those of a deployment are in Kafka",
            self.base
        )
    }

    async fn list(&self, filter: &Filter) -> anyhow::Result<Vec<Letter>> {
        #[derive(Deserialize)]
        struct Listed {
            letters: Vec<Letter>,
        }
        let mut query = Vec::new();
        query.extend(filter.topic.clone().map(|topic| ("topic", topic)));
        query.extend(filter.code.clone().map(|code| ("code", code)));
        query.extend(filter.since_ms.map(|since| ("since_ms", since.to_string())));
        query.extend(filter.limit.map(|limit| ("limit", limit.to_string())));
        let listed = self.ask(Method::GET, "/dead-letters", &query).await?;
        let listed = listed.ok_or_else(|| self.no_route())?;
        Ok(serde_json::from_value::<Listed>(listed)?.letters)
    }

    async fn open_letter(&self, address: &Address) -> anyhow::Result<Option<Value>> {
        let path = format!("/dead-letters/{address}");
        self.ask(Method::GET, &path, &[]).await
    }

    async fn settle(&self, addresses: &[Address], replay: bool) -> anyhow::Result<Vec<Settled>> {
        #[derive(Deserialize)]
        struct Answer {
            settled: Vec<Settled>,
        }
        let path = format!("/dead-letters/{}", if replay { "replay" } else { "drop" });
        let addresses = addresses.iter().map(|at| ("address", at.to_string()));
        let answer = self
            .ask(Method::POST, &path, &addresses.collect::<Vec<_>>())
            .await?;
        let answer = answer.ok_or_else(|| self.no_route())?;
        Ok(serde_json::from_value::<Answer>(answer)?.settled)
    }
}
