//! Delivery of a published answer to its user's connections.

use std::cell::Cell;

use chatmesh::gateway::bench::RegistryBench;
use chatmesh::protocol::ids::UserId;
use criterion::{BatchSize, Criterion, Throughput};
use tokio::runtime::Runtime;

use crate::frames::answer;

const USERS: usize = 10_000;

pub(crate) fn all(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let mut group = criterion.benchmark_group("registry");
    for sockets in [1, 20] {
        let users = if sockets == 1 { USERS } else { 100 };
        let users: Vec<UserId> = (0..users)
            .map(|n| UserId::parse(&format!("user{n}")).unwrap())
            .collect();
        let bench = runtime
            .block_on(RegistryBench::new(&users, sockets))
            .unwrap();
        // A delivered answer is not delivered again.
        let number = Cell::new(0_u64);
        group.throughput(Throughput::Elements(sockets as u64));
        let name = format!("answer to {sockets} of {} sockets", users.len() * sockets);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    let n = number.get() + 1;
                    number.set(n);
                    if n.is_multiple_of(256) {
                        bench.discard();
                    }
                    let user = &users[n as usize * 7 % users.len()];
                    (user, answer(user.as_str(), n))
                },
                |(user, payload)| assert!(bench.publish(user, payload.as_bytes())),
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}
