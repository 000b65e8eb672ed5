//! Composes the settings of the gateway, and the addresses on which roles listen.

use std::net::SocketAddr;

use crate::config::settings::{ConnectionLimits, GatewaySettings};
use crate::config::{Config, Role, keys};

impl Config {
    /// Settings of the gateway.
    pub fn gateway(&self) -> GatewaySettings {
        GatewaySettings {
            listen: self.listen(),
            server_id: self.server_id(),
            messages_topic: self.messages_topic(),
            auth: self.auth_mode(),
            jwt: self.jwt(),
            token_endpoint: self.token_endpoint(),
            admin_key: self.secret(&keys::ADMIN_KEY),
            limits: ConnectionLimits {
                per_user: self.size(&keys::USER_MAX_CONNECTIONS),
                per_address: self.size(&keys::ADDRESS_MAX_CONNECTIONS),
                per_process: self.size(&keys::MAX_CONNECTIONS),
                http: self.size(&keys::MAX_HTTP_CONNECTIONS),
                per_second: self.int_as(&keys::MAX_NEW_CONNECTIONS),
                trusted_proxies: self
                    .list(&keys::TRUSTED_PROXIES)
                    .iter()
                    .filter_map(|net| net.parse().ok())
                    .collect(),
            },
            rate_window: self.duration(&keys::USER_RATE_LIMIT_WINDOW_SECONDS),
            rate_fail_open: self.text(&keys::RATE_LIMIT_FAIL) == Some("open"),
            max_pending: self.user_limits().max_pending as usize,
            token_ttl: self.duration(&keys::TOKEN_TTL),
            chat_page: self.text(&keys::CHAT_PAGE) != Some("off"),
            allow_origins: self.list(&keys::ALLOW_ORIGINS),
            allow_credentials: self.bool(&keys::ALLOW_CREDENTIALS) && !self.allows_any_origin(),
            max_content_chars: self.size(&keys::MAX_CONTENT_CHARS),
            max_frame_bytes: self.size(&keys::MAX_FRAME_BYTES),
            outbound_queue_bytes: self.size(&keys::OUTBOUND_QUEUE_BYTES),
            produce_timeout: self.duration(&keys::PRODUCE_TIMEOUT_MS),
            drain_timeout: self.duration(&keys::DRAIN_TIMEOUT_MS),
            head_timeout: self.duration(&keys::HEAD_TIMEOUT_MS),
            ping_interval: self.duration(&keys::PING_INTERVAL_MS),
            ping_timeout: self.duration(&keys::PING_TIMEOUT_MS),
            open_check_interval: self.duration(&keys::OPEN_CHECK_MS),
            interop: self.interop(),
        }
    }

    /// Whether `ALLOW_ORIGINS` allows every origin.
    pub(in crate::config) fn allows_any_origin(&self) -> bool {
        let origins = self.list(&keys::ALLOW_ORIGINS);
        origins.iter().any(|origin| origin == "*")
    }

    /// The address on which the gateway accepts connections.
    pub(in crate::config) fn listen(&self) -> SocketAddr {
        self.address(&keys::HOST, &keys::PORT)
    }

    /// The address on which a worker or relay serves health and metrics.
    pub(in crate::config) fn admin_listen(&self) -> SocketAddr {
        self.address(&keys::METRICS_HOST, &keys::METRICS_PORT)
    }

    /// The address on which this role serves `/health`. A gateway serves it beside clients'
    /// connections, a worker or relay beside its metrics.
    pub fn health_address(&self) -> SocketAddr {
        match self.role() {
            Role::Gateway | Role::AllInOne => self.listen(),
            Role::AiWorker | Role::Relay => self.admin_listen(),
        }
    }
}
