//! The claims.

use larder_model::agent::Fence;
use larder_model::{Address, BackendNode, Code, EndpointKind, Exposed, InstanceId, NodeId};

use super::wish::{config, endpoint, exposure, fence, instance, node, secrets};
use super::{Check, Failure, Subject};
use crate::{BackendObserved, ClusterError};

/// Removals have to be done after this many pauses (10 s).
const PAUSES: usize = 200;

macro_rules! checks {
    ($($name:ident),* $(,)?) => {
        /// Every claim of the suite.
        pub const CHECKS: &[Check] =
            &[$(Check { name: stringify!($name), run: |subject| Box::pin($name(subject)) }),*];
    };
}

checks! {
    what_was_never_made_is_absent,
    there_is_a_ready_worker_with_memory,
    an_address_is_stable_and_unique,
    ensuring_a_node_twice_is_ensuring_it_once,
    a_node_is_brought_to_a_newer_configuration,
    older_fences_are_refused,
    a_newer_controller_is_obeyed,
    removing_a_node_ends_with_nothing_of_it,
    a_node_with_no_more_than_an_address_can_be_removed,
    removing_what_is_not_there_is_done,
    an_endpoint_keeps_its_address,
    each_kind_of_endpoint_has_its_own_address,
    removing_endpoints_ends_with_nothing_of_them,
    instances_lists_what_has_anything,
    a_removed_instance_leaves_nothing,
    an_address_is_not_given_to_another_instance_at_once,
    a_restarted_backend_shows_the_same,
    a_removal_goes_on_after_a_restart,
    a_node_is_exposed_or_refused_to_be,
}

macro_rules! claim {
    ($holds:expr, $($text:tt)+) => {
        if !$holds {
            return Err(format!($($text)+));
        }
    };
}

async fn what_was_never_made_is_absent(subject: &mut dyn Subject) -> Result<(), Failure> {
    let seen = observe(subject, &instance("i-none")?).await?;
    claim!(seen == BackendObserved::default(), "an unknown instance shows {seen:?}");
    let instances = subject.cluster().instances().await.map_err(text)?;
    claim!(instances.is_empty(), "an empty backend lists {instances:?}");
    Ok(())
}

async fn there_is_a_ready_worker_with_memory(subject: &mut dyn Subject) -> Result<(), Failure> {
    let before = subject.cluster().workers().await.map_err(text)?;
    claim!(
        before.iter().any(|worker| worker.state == larder_model::WorkerState::Ready),
        "no worker is ready: {before:?}"
    );
    claim!(before.is_sorted_by_key(|worker| worker.name.clone()), "workers are not sorted");
    let allocatable: u64 = before.iter().map(|worker| worker.allocatable.bytes()).sum();
    claim!(allocatable > 0, "no worker has memory");
    let id = instance("i-mem")?;
    make_node(subject, &id, &node("n-mem")?, fence(1, 1)).await?;
    let requested = |workers: &[larder_model::Worker]| -> u64 {
        workers.iter().map(|worker| worker.requested.bytes()).sum()
    };
    let after = subject.cluster().workers().await.map_err(text)?;
    let grown = requested(&after).saturating_sub(requested(&before));
    claim!(grown == 128 << 20, "a node of 128MiB made the requested memory grow by {grown} bytes");
    Ok(())
}

async fn an_address_is_stable_and_unique(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (a, b) = (instance("i-a")?, instance("i-b")?);
    let (one, two) = (node("n-1")?, node("n-2")?);
    let cluster = subject.cluster();
    let first = cluster.reserve_address(fence(1, 1), &a, &one).await.map_err(text)?;
    let second = cluster.reserve_address(fence(1, 1), &a, &two).await.map_err(text)?;
    let third = cluster.reserve_address(fence(1, 1), &b, &node("n-3")?).await.map_err(text)?;
    claim!(
        first != second && second != third && first != third,
        "three nodes share addresses: {first} {second} {third}"
    );
    let again = cluster.reserve_address(fence(1, 1), &a, &one).await.map_err(text)?;
    claim!(again == first, "asked again it is {again}, not {first}");
    subject.restart().await;
    let again = subject.cluster().reserve_address(fence(1, 1), &a, &one).await.map_err(text)?;
    claim!(again == first, "after a restart it is {again}, not {first}");
    Ok(())
}

async fn ensuring_a_node_twice_is_ensuring_it_once(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    let address = make_node(subject, &id, &one, fence(1, 1)).await?;
    let first = known_node(subject, &id, &one).await?;
    claim!(first.realised, "an ensured node is not realised: {first:?}");
    claim!(first.address.as_ref() == Some(&address), "it shows {:?}", first.address);
    claim!(first.generation == 1, "it shows generation {}", first.generation);
    make_node(subject, &id, &one, fence(1, 1)).await?;
    let seen = observe(subject, &id).await?;
    claim!(seen.nodes.len() == 1, "ensured twice there are {} nodes", seen.nodes.len());
    let second = known_node(subject, &id, &one).await?;
    claim!(
        (second.realised, &second.address, second.generation, &second.worker)
            == (true, &first.address, first.generation, &first.worker),
        "ensured twice it changed from {first:?} to {second:?}"
    );
    Ok(())
}

async fn a_node_is_brought_to_a_newer_configuration(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    let before = make_node(subject, &id, &one, fence(1, 1)).await?;
    let after = make_node(subject, &id, &one, fence(1, 2)).await?;
    claim!(before == after, "its address moved from {before} to {after}");
    let seen = known_node(subject, &id, &one).await?;
    claim!(seen.generation == 2, "it shows generation {}", seen.generation);
    Ok(())
}

async fn older_fences_are_refused(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    let address = make_node(subject, &id, &one, fence(2, 5)).await?;
    let cluster = subject.cluster();
    for old in [fence(2, 4), fence(1, 9)] {
        let reserved = cluster.reserve_address(old, &id, &one).await.map(drop);
        stale(reserved, "reserve_address", old)?;
        let wish = config(&id, &one, &address, &subject.engine(), old.generation)?;
        stale(cluster.ensure_node(old, &wish, &secrets()).await, "ensure_node", old)?;
        stale(cluster.remove_node(old, &id, &one).await, "remove_node", old)?;
        let wish = endpoint(&id, EndpointKind::Discovery, Vec::new(), old.generation);
        stale(cluster.ensure_endpoint(old, &wish).await, "ensure_endpoint", old)?;
        let removed = cluster.remove_endpoint(old, &id, EndpointKind::Discovery).await;
        stale(removed, "remove_endpoint", old)?;
    }
    let seen = known_node(subject, &id, &one).await?;
    claim!(seen.realised && seen.generation == 5, "a refused order had an effect: {seen:?}");
    subject.restart().await;
    let old = fence(2, 4);
    let removed = subject.cluster().remove_node(old, &id, &one).await;
    stale(removed, "remove_node after a restart", old)
}

async fn a_newer_controller_is_obeyed(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    make_node(subject, &id, &one, fence(1, 3)).await?;
    make_node(subject, &id, &one, fence(2, 3)).await?;
    let old = fence(1, 3);
    let removed = subject.cluster().remove_node(old, &id, &one).await;
    stale(removed, "remove_node of the former controller", old)
}

async fn removing_a_node_ends_with_nothing_of_it(subject: &mut dyn Subject) -> Result<(), Failure> {
    let id = instance("i-a")?;
    let (one, two) = (node("n-1")?, node("n-2")?);
    make_node(subject, &id, &one, fence(1, 1)).await?;
    make_node(subject, &id, &two, fence(1, 1)).await?;
    remove_node(subject, &id, &one).await?;
    let seen = observe(subject, &id).await?;
    claim!(seen.nodes.keys().eq([&two]), "left over: {:?}", seen.nodes.keys());
    claim!(known_node(subject, &id, &two).await?.realised, "the other node was touched");
    let done = subject.cluster().remove_node(fence(1, 2), &id, &one).await;
    done.map_err(|error| format!("removing it once more: {error}"))
}

async fn a_node_with_no_more_than_an_address_can_be_removed(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    let address = subject.cluster().reserve_address(fence(1, 1), &id, &one).await.map_err(text)?;
    let seen = known_node(subject, &id, &one).await?;
    claim!(!seen.realised, "an address alone counts as realised");
    claim!(seen.address.as_ref() == Some(&address), "its address is not shown: {seen:?}");
    remove_node(subject, &id, &one).await
}

async fn removing_what_is_not_there_is_done(subject: &mut dyn Subject) -> Result<(), Failure> {
    let id = instance("i-none")?;
    let cluster = subject.cluster();
    cluster.remove_node(fence(1, 1), &id, &node("n-none")?).await.map_err(text)?;
    cluster.remove_endpoint(fence(1, 1), &id, EndpointKind::Read).await.map_err(text)?;
    cluster.remove_instance(fence(1, 1), &id).await.map_err(text)?;
    let instances = cluster.instances().await.map_err(text)?;
    claim!(instances.is_empty(), "removing made {instances:?}");
    Ok(())
}

async fn an_endpoint_keeps_its_address(subject: &mut dyn Subject) -> Result<(), Failure> {
    let id = instance("i-a")?;
    let kind = EndpointKind::Write;
    let first = make_endpoint(subject, &id, kind, fence(1, 1)).await?;
    let again = make_endpoint(subject, &id, kind, fence(1, 2)).await?;
    claim!(again == first, "it moved from {first} to {again}");
    subject.restart().await;
    let again = make_endpoint(subject, &id, kind, fence(1, 3)).await?;
    claim!(again == first, "after a restart it moved from {first} to {again}");
    Ok(())
}

async fn each_kind_of_endpoint_has_its_own_address(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let id = instance("i-a")?;
    let write = make_endpoint(subject, &id, EndpointKind::Write, fence(1, 1)).await?;
    let read = make_endpoint(subject, &id, EndpointKind::Read, fence(1, 1)).await?;
    let server =
        subject.cluster().reserve_address(fence(1, 1), &id, &node("n-1")?).await.map_err(text)?;
    claim!(
        write != read && read != server && write != server,
        "addresses are shared: write {write}, read {read}, a node {server}"
    );
    Ok(())
}

async fn removing_endpoints_ends_with_nothing_of_them(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let id = instance("i-a")?;
    make_endpoint(subject, &id, EndpointKind::Write, fence(1, 1)).await?;
    let read = make_endpoint(subject, &id, EndpointKind::Read, fence(1, 1)).await?;
    remove_endpoint(subject, &id, EndpointKind::Write).await?;
    let seen = observe(subject, &id).await?;
    let left: Vec<_> = seen.endpoints.iter().map(|(k, e)| (*k, e.address.clone())).collect();
    claim!(left == [(EndpointKind::Read, read)], "left over: {left:?}");
    remove_endpoint(subject, &id, EndpointKind::Read).await?;
    let again = subject.cluster().remove_endpoint(fence(1, 2), &id, EndpointKind::Read).await;
    again.map_err(|error| format!("removing it once more: {error}"))
}

async fn instances_lists_what_has_anything(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (a, b, c) = (instance("i-a")?, instance("i-b")?, instance("i-c")?);
    make_node(subject, &a, &node("n-1")?, fence(1, 1)).await?;
    make_endpoint(subject, &b, EndpointKind::Write, fence(1, 1)).await?;
    subject.cluster().reserve_address(fence(1, 1), &c, &node("n-2")?).await.map_err(text)?;
    let instances = subject.cluster().instances().await.map_err(text)?;
    claim!(instances.iter().eq([&a, &b, &c]), "it lists {instances:?}");
    Ok(())
}

async fn a_removed_instance_leaves_nothing(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    make_node(subject, &id, &one, fence(1, 1)).await?;
    make_endpoint(subject, &id, EndpointKind::Discovery, fence(1, 1)).await?;
    remove_node(subject, &id, &one).await?;
    remove_endpoint(subject, &id, EndpointKind::Discovery).await?;
    for _ in 0..2 {
        subject.cluster().remove_instance(fence(1, 2), &id).await.map_err(text)?;
    }
    let instances = subject.cluster().instances().await.map_err(text)?;
    claim!(instances.is_empty(), "left over: {instances:?}");
    Ok(())
}

async fn an_address_is_not_given_to_another_instance_at_once(
    subject: &mut dyn Subject,
) -> Result<(), Failure> {
    let (id, one, two) = (instance("i-a")?, node("n-1")?, node("n-2")?);
    let released = make_node(subject, &id, &one, fence(1, 1)).await?;
    make_node(subject, &id, &two, fence(1, 1)).await?;
    remove_node(subject, &id, &one).await?;
    let other = instance("i-b")?;
    let given = subject
        .cluster()
        .reserve_address(fence(1, 1), &other, &node("n-3")?)
        .await
        .map_err(text)?;
    claim!(given != released, "{released} went to another instance while peers remember it");
    Ok(())
}

async fn a_restarted_backend_shows_the_same(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    make_node(subject, &id, &one, fence(1, 1)).await?;
    make_endpoint(subject, &id, EndpointKind::Discovery, fence(1, 1)).await?;
    subject.cluster().reserve_address(fence(1, 1), &id, &node("n-2")?).await.map_err(text)?;
    let before = facts(&observe(subject, &id).await?);
    subject.restart().await;
    let after = facts(&observe(subject, &id).await?);
    claim!(before == after, "before: {before:?}, after: {after:?}");
    Ok(())
}

async fn a_removal_goes_on_after_a_restart(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    make_node(subject, &id, &one, fence(1, 1)).await?;
    subject.cluster().remove_node(fence(1, 2), &id, &one).await.map_err(text)?;
    subject.restart().await;
    wait_until_gone(subject, &id, "node", |seen| !seen.nodes.contains_key(&one)).await
}

async fn a_node_is_exposed_or_refused_to_be(subject: &mut dyn Subject) -> Result<(), Failure> {
    let (id, one) = (instance("i-a")?, node("n-1")?);
    let address = make_node(subject, &id, &one, fence(2, 5)).await?;
    let wish = exposure(&id, &one, &address, &subject.engine());
    let given = match subject.cluster().expose_node(fence(2, 5), &wish).await {
        Err(ClusterError::Refused(refusal)) => {
            claim!(refusal.code == Code::InvalidRequest, "it is refused with {}", refusal.code);
            let seen = known_node(subject, &id, &one).await?;
            claim!(seen.exposed == Exposed::No, "refused, and yet it shows {:?}", seen.exposed);
            return Ok(());
        }
        given => given.map_err(text)?,
    };
    let seen = known_node(subject, &id, &one).await?;
    let shown = match &seen.exposed {
        Exposed::Yes(outer) => Some(outer.clone()),
        Exposed::Pending => None,
        Exposed::No => return Err(format!("it was given {given:?} and shows nothing of it")),
    };
    claim!(given.is_none() || shown == given, "it was given {given:?} and shows {shown:?}");
    let again = subject.cluster().expose_node(fence(2, 5), &wish).await.map_err(text)?;
    claim!(given.is_none() || again == given, "asked again it is {again:?}, not {given:?}");
    for old in [fence(2, 4), fence(1, 9)] {
        let exposed = subject.cluster().expose_node(old, &wish).await.map(drop);
        stale(exposed, "expose_node", old)?;
    }
    subject.cluster().remove_node(fence(2, 6), &id, &one).await.map_err(text)?;
    wait_until_gone(subject, &id, "node", |seen| !seen.nodes.contains_key(&one)).await
}

// What does not depend on agents and relays being up already.
type Facts = (Vec<(NodeId, Option<Address>, bool, u64)>, Vec<(EndpointKind, Address)>);

fn facts(seen: &BackendObserved) -> Facts {
    let node = |(id, node): (&NodeId, &BackendNode)| {
        (id.clone(), node.address.clone(), node.realised, node.generation)
    };
    (
        seen.nodes.iter().map(node).collect(),
        seen.endpoints.iter().map(|(kind, e)| (*kind, e.address.clone())).collect(),
    )
}

async fn observe(subject: &dyn Subject, id: &InstanceId) -> Result<BackendObserved, Failure> {
    subject.cluster().observe(id).await.map_err(text)
}

async fn known_node(
    subject: &dyn Subject,
    id: &InstanceId,
    node: &NodeId,
) -> Result<BackendNode, Failure> {
    let mut seen = observe(subject, id).await?;
    seen.nodes.remove(node).ok_or_else(|| format!("node {node} is not shown"))
}

async fn make_node(
    subject: &dyn Subject,
    id: &InstanceId,
    node: &NodeId,
    fence: Fence,
) -> Result<Address, Failure> {
    let cluster = subject.cluster();
    let address = cluster.reserve_address(fence, id, node).await.map_err(text)?;
    let wish = config(id, node, &address, &subject.engine(), fence.generation)?;
    cluster.ensure_node(fence, &wish, &secrets()).await.map_err(text)?;
    Ok(address)
}

async fn make_endpoint(
    subject: &dyn Subject,
    id: &InstanceId,
    kind: EndpointKind,
    fence: Fence,
) -> Result<Address, Failure> {
    let wish = endpoint(id, kind, Vec::new(), fence.generation);
    subject.cluster().ensure_endpoint(fence, &wish).await.map_err(text)?;
    let seen = observe(subject, id).await?;
    let endpoint = seen.endpoints.get(&kind);
    endpoint.map(|e| e.address.clone()).ok_or_else(|| format!("the {kind} endpoint is not shown"))
}

async fn remove_node(subject: &dyn Subject, id: &InstanceId, node: &NodeId) -> Result<(), Failure> {
    subject.cluster().remove_node(fence(1, 2), id, node).await.map_err(text)?;
    wait_until_gone(subject, id, "node", |seen| !seen.nodes.contains_key(node)).await
}

async fn remove_endpoint(
    subject: &dyn Subject,
    id: &InstanceId,
    kind: EndpointKind,
) -> Result<(), Failure> {
    subject.cluster().remove_endpoint(fence(1, 2), id, kind).await.map_err(text)?;
    wait_until_gone(subject, id, "endpoint", |seen| !seen.endpoints.contains_key(&kind)).await
}

async fn wait_until_gone(
    subject: &dyn Subject,
    id: &InstanceId,
    what: &str,
    is_gone: impl Fn(&BackendObserved) -> bool + Send,
) -> Result<(), Failure> {
    let mut seen = observe(subject, id).await?;
    for _ in 0..PAUSES {
        if is_gone(&seen) {
            return Ok(());
        }
        subject.pause().await;
        seen = observe(subject, id).await?;
    }
    Err(format!("the removed {what} is still there: {seen:?}"))
}

fn stale(result: Result<(), ClusterError>, call: &str, old: Fence) -> Result<(), Failure> {
    match result {
        Err(ClusterError::Stale { .. }) => Ok(()),
        Ok(()) => Err(format!("{call} obeyed the older {old:?}")),
        Err(error) => Err(format!("{call} with the older {old:?}: {error}")),
    }
}

fn text(error: ClusterError) -> Failure {
    error.to_string()
}
