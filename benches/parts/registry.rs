//! Benchmarks of the delivery of a published answer to the connections of its user.

use std::cell::Cell;

use chatmesh::gateway::bench::RegistryBench;
use chatmesh::protocol::ids::UserId;
use criterion::{BatchSize, Criterion, Throughput};
use tokio::runtime::Runtime;

use crate::frames::published_answer;

/// Number of users if each has one connection.
const USER_COUNT: usize = 10_000;

pub(crate) fn run_benchmarks(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("registry");
    for connections in [1, 20] {
        let user_count = if connections == 1 { USER_COUNT } else { 100 };
        let users: Vec<UserId> = (0..user_count)
            .map(|n| UserId::parse(&format!("user{n}")).unwrap())
            .collect();
        let bench = runtime
            .block_on(RegistryBench::new(&users, connections))
            .unwrap();
        // Every iteration publishes an answer with another number, because the registry delivers no
        // answer twice.
        let last_number = Cell::new(0_u64);
        group.throughput(Throughput::Elements(connections as u64));
        let name = format!(
            "answer to {connections} of {} sockets",
            users.len() * connections
        );
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let n = last_number.get() + 1;
                    last_number.set(n);
                    // The queues of the connections are emptied before they are full.
                    if n.is_multiple_of(256) {
                        bench.discard();
                    }
                    let user = &users[n as usize * 7 % users.len()];
                    (user, published_answer(user.as_str(), n))
                },
                |(user, payload)| assert!(bench.publish(user, payload.as_bytes())),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
