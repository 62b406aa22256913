//! Events as they happen, as server-sent events that can be resumed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::{self, KeepAlive, Sse};
use futures::Stream;
use larder_api_types::{Event, Problem};
use larder_model::{Code, Secret};
use larder_store::{EventFilter, EventRow};
use serde::Deserialize;
use tokio::sync::watch;
use utoipa::IntoParams;

use super::events;
use crate::auth::Caller;
use crate::body::Params;
use crate::error::ApiError;
use crate::render;
use crate::state::ApiState;

/// Events read from the store at once.
const BATCH: u32 = 500;
/// A revoked login's stream ends within this time.
const CHECK_LOGIN: Duration = Duration::from_secs(30);
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct StreamParams {
    /// All projects when left out.
    project: Option<String>,
    /// Name (in the project, `default` when left out) or id.
    instance: Option<String>,
    /// Begin after this event; from now on when left out. The header `Last-Event-ID`, which
    /// browsers send when they connect again, wins.
    after: Option<u64>,
}

/// Events as they happen. Each message is of type `event`, has the event's number as id and the
/// event as JSON.
#[utoipa::path(get, path = "/api/v1/events/stream", tag = "events", params(StreamParams),
    responses(
        (status = 200, description = "A stream that does not end", body = Event, content_type = "text/event-stream"),
        (status = "default", description = "A refusal", body = Problem, content_type = "application/problem+json")))]
pub(crate) async fn stream(
    State(state): State<ApiState>,
    caller: Caller,
    headers: HeaderMap,
    Params(params): Params<StreamParams>,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, ApiError> {
    let mut filter =
        events::filter(&state, &caller, params.project.as_deref(), params.instance.as_deref())
            .await?;
    let last_id = match headers.get("last-event-id") {
        None => None,
        Some(value) => {
            let parsed = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
            Some(parsed.ok_or_else(|| {
                ApiError::new(Code::InvalidRequest, "the header Last-Event-ID is not a number")
                    .field("Last-Event-ID")
            })?)
        }
    };
    let changes = state.store().changes();
    let newest = *changes.borrow();
    // A number from the future (of a store that was replaced) would wait for ever.
    filter.after = Some(last_id.or(params.after).unwrap_or(newest).min(newest));
    filter.limit = Some(BATCH);
    let follower = Follower {
        stopping: state.parts().stopping.clone(),
        state,
        changes,
        filter,
        secret: caller.secret,
        checked: Instant::now(),
        ready: VecDeque::new(),
    };
    let messages = futures::stream::unfold(follower, |mut follower| async move {
        let row = follower.next().await?;
        Some((Ok(message(&row)), follower))
    });
    Ok(Sse::new(messages).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn message(row: &EventRow) -> sse::Event {
    let message = sse::Event::default().event("event").id(row.seq.to_string());
    // An event is plain data, which always has a JSON form; without data it would be skipped.
    match message.json_data(render::event(row)) {
        Ok(message) => message,
        Err(_) => sse::Event::default().comment("an event could not be shown"),
    }
}

struct Follower {
    state: ApiState,
    changes: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    filter: EventFilter,
    secret: Secret,
    checked: Instant,
    ready: VecDeque<EventRow>,
}

impl Follower {
    /// The next event; `None` ends the stream: the server stops, or the login has ended.
    async fn next(&mut self) -> Option<EventRow> {
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            if self.checked.elapsed() >= CHECK_LOGIN {
                self.state.store().token_find(&self.secret).await.ok().flatten()?;
                self.checked = Instant::now();
            }
            if let Some(row) = self.ready.pop_front() {
                self.filter.after = Some(row.seq);
                return Some(row);
            }
            // Marked as seen before reading: what comes in between wakes us again.
            self.changes.borrow_and_update();
            match self.state.store().event_list(&self.filter).await {
                Ok(rows) if !rows.is_empty() => {
                    self.ready = rows.into();
                    continue;
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the event stream ends: the client resumes it");
                    return None;
                }
            }
            tokio::select! {
                changed = self.changes.changed() => changed.ok()?,
                // An error: whoever could stop the server is gone, and with it the server.
                stopping = self.stopping.changed() => stopping.ok()?,
                () = tokio::time::sleep(CHECK_LOGIN) => {}
            }
        }
    }
}
