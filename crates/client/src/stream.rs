//! Following events as they happen.

use std::collections::VecDeque;
use std::time::Duration;

use larder_api_types::Event;
use reqwest::{Method, Response};

use crate::client::Client;
use crate::error::ClientError;
use crate::sse::{SseMessage, SseParser};

/// Pauses between attempts to get a broken stream back.
const RETRY_AFTER: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
];

/// Events in order, without gaps: a broken connection is opened again after the last event seen.
#[derive(Debug)]
pub struct EventStream {
    client: Client,
    project: String,
    instance: Option<String>,
    /// Where to go on; `None` for "from now on".
    last_seq: Option<u64>,
    response: Option<Response>,
    parser: SseParser,
    ready: VecDeque<SseMessage>,
}

impl Client {
    /// Opens the stream of events that come after `after`, or from now on.
    ///
    /// # Errors
    /// The first connection's; later ones are made again by [`EventStream::next`].
    pub async fn event_stream(
        &self,
        project: &str,
        instance: Option<&str>,
        after: Option<u64>,
    ) -> Result<EventStream, ClientError> {
        let mut stream = EventStream {
            client: self.clone(),
            project: project.to_owned(),
            instance: instance.map(str::to_owned),
            last_seq: after,
            response: None,
            parser: SseParser::default(),
            ready: VecDeque::new(),
        };
        stream.connect().await?;
        Ok(stream)
    }
}

impl EventStream {
    /// The next event. Waits as long as it takes; a lost connection is made again with growing
    /// pauses. Cancel-safe: a dropped call loses no event.
    ///
    /// # Errors
    /// When the server refuses the stream (the login ended, the instance is gone), or stays out
    /// of reach for some 8 seconds.
    pub async fn next(&mut self) -> Result<Event, ClientError> {
        let mut attempts = RETRY_AFTER.iter();
        loop {
            while let Some(message) = self.ready.pop_front() {
                if let Ok(seq) = message.id.parse() {
                    self.last_seq = Some(seq);
                }
                // Other kinds of message may come with newer servers.
                if message.event == "event"
                    && let Ok(event) = serde_json::from_str(&message.data)
                {
                    return Ok(event);
                }
            }
            let failure = match self.read().await {
                Ok(()) => {
                    attempts = RETRY_AFTER.iter();
                    continue;
                }
                Err(failure) => failure,
            };
            self.response = None;
            self.parser = SseParser::default();
            if !failure.is_retryable() {
                return Err(failure);
            }
            let Some(pause) = attempts.next() else { return Err(failure) };
            tokio::time::sleep(*pause).await;
            if let Err(failure) = self.connect().await
                && !failure.is_retryable()
            {
                return Err(failure);
            }
        }
    }

    async fn connect(&mut self) -> Result<(), ClientError> {
        let mut request = self
            .client
            .request(Method::GET, &["events", "stream"])
            .query(&[("project", self.project.as_str())])
            .header("accept", "text/event-stream");
        if let Some(instance) = &self.instance {
            request = request.query(&[("instance", instance)]);
        }
        if let Some(seq) = self.last_seq {
            request = request.header("last-event-id", seq);
        }
        self.response = Some(self.client.checked(request).await?);
        Ok(())
    }

    /// Reads some bytes; `Ok` also when they complete no message.
    async fn read(&mut self) -> Result<(), ClientError> {
        let broken = |reason: &str| ClientError::Unreachable {
            server: self.client.server().to_owned(),
            reason: reason.to_owned(),
        };
        let Some(response) = &mut self.response else {
            return Err(broken("the event stream is closed"));
        };
        match response.chunk().await {
            Ok(Some(bytes)) => {
                let messages = self.parser.push(&bytes).map_err(|e| broken(&e.to_string()))?;
                self.ready.extend(messages);
                Ok(())
            }
            Ok(None) => Err(broken("the server closed the event stream")),
            Err(error) => Err(self.client.unreachable(error)),
        }
    }
}
