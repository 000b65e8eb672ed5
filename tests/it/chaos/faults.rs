//! The faults, their order and the restrictions of a run.

use std::fmt;

/// A fault that a run can inject into its system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    GatewayKilled,
    WorkerKilled,
    RelayKilled,
    GatewayStopped,
    WorkerStopped,
    RelayStopped,
    GatewayPaused,
    WorkerPaused,
    RelayPaused,
    KafkaKilled,
    KafkaStopped,
    KafkaPaused,
    RedisRestarted,
    RedisEmptied,
    RedisPaused,
    LinkCut,
    LinkSilent,
    LinkSlow,
    ProviderDown,
    ProviderFaulty,
    ClockShifted,
    RebalanceStorm,
    PartitionsAdded,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// Relative frequency of each fault; the sum is about a hundred.
pub(super) const WEIGHTS: [(Fault, u32); 22] = [
    (Fault::GatewayKilled, 8),
    (Fault::WorkerKilled, 10),
    (Fault::RelayKilled, 8),
    (Fault::GatewayStopped, 5),
    (Fault::WorkerStopped, 6),
    (Fault::RelayStopped, 5),
    (Fault::GatewayPaused, 2),
    (Fault::WorkerPaused, 3),
    (Fault::RelayPaused, 2),
    (Fault::KafkaKilled, 3),
    (Fault::KafkaStopped, 2),
    (Fault::KafkaPaused, 2),
    (Fault::RedisRestarted, 6),
    (Fault::RedisEmptied, 4),
    (Fault::RedisPaused, 3),
    (Fault::LinkCut, 10),
    (Fault::LinkSilent, 6),
    (Fault::LinkSlow, 5),
    (Fault::ProviderDown, 4),
    (Fault::ProviderFaulty, 5),
    (Fault::ClockShifted, 2),
    (Fault::RebalanceStorm, 2),
];

/// The first faults of a run, so that a short run has faults of every component.
pub(super) const FIRST_FAULTS: [Fault; 12] = [
    Fault::WorkerKilled,
    Fault::RelayKilled,
    Fault::GatewayKilled,
    Fault::RedisRestarted,
    Fault::WorkerStopped,
    Fault::KafkaKilled,
    Fault::RedisEmptied,
    Fault::ProviderFaulty,
    Fault::GatewayStopped,
    Fault::LinkCut,
    Fault::RelayStopped,
    Fault::LinkSilent,
];

/// Number of faults after which those that have not been injected yet are chosen first, because a
/// random choice may omit one.
pub(super) const COMPLETE_COVERAGE_FROM: usize = 60;

/// Restricts the faults of a run.
#[derive(Debug, Clone, Default)]
pub(super) struct FaultPlan {
    /// Leaves out faults of the model API and of the connection to it.
    pub(super) steady_model: bool,
    /// The only faults to inject. If empty, all faults are injected.
    pub(super) only: Vec<Fault>,
}

impl FaultPlan {
    /// Reads `CHATMESH_CHAOS_PROVIDER=steady` and `CHATMESH_CHAOS_ONLY=KafkaKilled,RelayStopped`.
    pub(super) fn from_env() -> Self {
        let steady_model = match std::env::var("CHATMESH_CHAOS_PROVIDER").as_deref() {
            Err(_) | Ok("") => false,
            Ok("steady") => true,
            Ok(other) => {
                panic!("CHATMESH_CHAOS_PROVIDER={other}: the only allowed value is steady")
            }
        };
        let only = std::env::var("CHATMESH_CHAOS_ONLY").unwrap_or_default();
        let only = only.split(',').filter(|name| !name.is_empty()).map(|name| {
            let weighted = WEIGHTS.iter().map(|(fault, _)| *fault);
            let faults = weighted.chain([Fault::PartitionsAdded]);
            let found = faults.clone().find(|fault| fault.to_string() == name);
            found.unwrap_or_else(|| {
                let names: Vec<String> = faults.map(|fault| fault.to_string()).collect();
                let names = names.join(", ");
                panic!("CHATMESH_CHAOS_ONLY: no fault is named {name}; allowed: {names}")
            })
        });
        Self {
            steady_model,
            only: only.collect(),
        }
    }

    /// Whether the plan leaves this fault in.
    pub(super) fn allows(&self, fault: Fault) -> bool {
        !(self.steady_model && matches!(fault, Fault::ProviderDown | Fault::ProviderFaulty))
    }
}
