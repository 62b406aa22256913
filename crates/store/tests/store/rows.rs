//! What is written is what is read, for whatever the model allows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use larder_model::agent::Role;
use larder_model::plan::{PlannedStep, Step, Wait};
use larder_model::{
    Address, ByteSize, Condition, EndpointKind, InstanceState, Millis, NodeId, NodePhase,
    OperationKind, OperationState, PlannerPolicy, SLOT_COUNT, SlotRange, SlotSet, StepState,
    Timestamp, WorkerName, ZoneName,
};
use larder_store::{ConditionSince, NodeState, NodeView};

use crate::support::{
    Folder, instance_id, node, observation, operation, operation_id, record, secrets, spec, step,
};

fn any_view() -> impl Strategy<Value = NodeView> {
    let identity = ("[a-z0-9]{1,20}", 0..20_u32, prop::option::of(any::<bool>()));
    let place = (prop::option::of(any::<u16>()), prop::option::of("[a-z]{1,8}"), 0..7_usize);
    let figures = (
        prop::option::of(any::<u64>()),
        prop::option::of(any::<u32>()),
        prop::option::of(any::<i64>()),
        prop::collection::vec((0..SLOT_COUNT, 0..50_u16), 0..4),
    );
    (identity, place, figures).prop_map(
        |((id, shard, primary), (port, zone, state), (offset, pid, seen, slots))| NodeView {
            outside: None,
            id: NodeId::new(id).expect("valid"),
            shard,
            role: primary.map(|p| if p { Role::Primary } else { Role::Replica }),
            state: NodeState::ALL[state],
            address: port.map(|port| Address::new("127.0.0.1", port)),
            pid,
            zone: zone.map(|z| ZoneName::new(z).expect("valid")),
            worker: WorkerName::new("local").expect("valid"),
            replica_of: NodeId::new("other").ok(),
            link_up: primary,
            offset,
            lag_bytes: offset,
            used_memory: offset.map(ByteSize),
            slots: slots
                .into_iter()
                .map(|(first, len)| SlotRange { first, last: (first + len).min(SLOT_COUNT - 1) })
                .collect::<SlotSet>(),
            engine_version: Some("7.0.15".into()),
            last_seen_at: seen.map(Timestamp),
        },
    )
}

fn any_text() -> impl Strategy<Value = String> {
    // Everything but NUL, which PostgreSQL's TEXT cannot hold.
    "[^\\x00]{0,40}"
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn rows_read_back_as_written(
        views in prop::collection::vec(any_view(), 0..5),
        texts in prop::collection::vec(any_text(), 6),
        tags in prop::collection::btree_map("[a-z]{1,10}", any_text(), 0..4),
        numbers in (any::<u32>(), any::<i64>(), any::<u16>(), any::<bool>()),
        progress in prop::option::of(0..=10_000_u32),
    ) {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let (memory, at, port, flag) = numbers;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut spec = spec(n, &format!("instance-{n}"));
        spec.description.clone_from(&texts[0]);
        spec.tags = tags;
        spec.memory = ByteSize(u64::from(memory) << 8);
        let mut create = operation(n, &spec, OperationKind::Create);
        create.requested_by.clone_from(&texts[1]);
        create.created_at = Timestamp(at);
        let mut record = record("instance-create", &spec);
        record.detail = serde_json::json!({ "text": texts[2], "number": at });
        let mut node = node(n, memory % 11);
        node.address = flag.then(|| Address::new("::1", port));
        node.phase = if flag { NodePhase::Leaving } else { NodePhase::Wanted };
        node.zone = ZoneName::new("zone-a").ok().filter(|_| flag);
        let mut seen = observation(&spec.id, InstanceState::Degraded, 2);
        seen.nodes = views;
        seen.at = Timestamp(at);
        seen.endpoints = BTreeMap::from([(EndpointKind::Write, Address::new("h", port))]);
        seen.conditions = vec![ConditionSince {
            condition: Condition {
                kind: "ready".into(),
                status: flag,
                reason: "r".into(),
                message: texts[3].clone(),
            },
            since: Timestamp(at),
        }];
        seen.plan.steps = vec![PlannedStep {
            instance: spec.id.clone(),
            generation: 2,
            reason: texts[4].clone(),
            step: Step::EnsureEndpoint { endpoint: EndpointKind::Read },
        }];
        seen.plan.waits = vec![Wait::AgentSilent { node: node.id.clone(), unknown_for: Millis(7) }];
        let mut work = step("start", StepState::Running);
        work.progress = progress.map(|p| f64::from(p) / 1e4);
        work.message.clone_from(&texts[5]);

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("rt");
        runtime.block_on(async {
            let folder = Folder::new();
            let store = folder.store().await;
            store.instance_create(&spec, &secrets(), &create, &record).await.expect("create");
            store.node_insert(&spec.id, &node, 1).await.expect("node");
            store.instance_observation_set(&spec.id, &seen).await.expect("observe");
            let row = store.instance_get(&instance_id(n)).await.expect("get");
            prop_assert_eq!(&row.spec, &spec);
            prop_assert_eq!(row.observation.as_ref(), Some(&seen));
            let desired = store
                .instance_desired(&spec.id, PlannerPolicy::default()).await.expect("read").expect("there");
            prop_assert_eq!(&desired.nodes, &vec![node]);
            prop_assert_eq!(desired.operation.as_ref(), Some(&create));
            let records = store.record_list(&Default::default()).await.expect("records");
            prop_assert_eq!(&records[0].record, &record);
            let told = store
                .operation_report(&create.id, vec![work.clone()], OperationState::Running, None)
                .await
                .expect("report");
            let kept = store.operation_get(&operation_id(n)).await.expect("get");
            prop_assert_eq!(&kept, &told);
            prop_assert_eq!(kept.steps[0].progress, work.progress);
            prop_assert_eq!(&kept.steps[0].message, &work.message);
            Ok(())
        })?;
    }
}
