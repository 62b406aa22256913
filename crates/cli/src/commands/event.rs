//! Events and records.

use jiff::{SignedDuration, Timestamp};
use larder_client::Client;

use crate::args::{EventCommand, LimitOption, RecordCommand};
use crate::config::Context;
use crate::console::Console;
use crate::duration;
use crate::exit::CliError;
use crate::limit::Limit;
use crate::render;

pub(crate) async fn run(
    command: EventCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let EventCommand::List { project, instance, follow, limit } = command;
    let client = context.client()?;
    let project = context.project(project.project.as_deref())?;
    let instance = instance.as_deref();
    if follow {
        return self::follow(&client, &project, instance, limit, console).await;
    }
    let limit = Limit::of(limit, console)?;
    let events = client.event_list(&project, instance, limit.rows).await?;
    if console.is_json() {
        console.json(&events)?;
    } else {
        let text = render::events(console, &events);
        console.data(&text)?;
    }
    limit.say_if_cut(console, events.len());
    Ok(())
}

/// Lists, then goes on with what happens from there; with a limit of 0 only the latter.
async fn follow(
    client: &Client,
    project: &str,
    instance: Option<&str>,
    limit: LimitOption,
    console: &mut Console,
) -> Result<(), CliError> {
    let listed = match limit.limit {
        Some(0) => None,
        _ => {
            let rows = Limit::of(limit, console)?.rows;
            Some(client.event_list(project, instance, rows).await?)
        }
    };
    if !console.is_json() {
        console.data(&render::event_header())?;
    }
    for event in listed.iter().flatten() {
        print(console, event)?;
    }
    // From where the list ends; an empty list ends before the very first event, none ends now.
    let after = listed.map(|events| events.last().map_or(0, |event| event.seq));
    let mut stream = client.event_stream(project, instance, after).await?;
    loop {
        let event = stream.next().await?;
        print(console, &event)?;
    }
}

fn print(console: &mut Console, event: &larder_api_types::Event) -> Result<(), CliError> {
    if console.is_json() {
        console.json_line(event)
    } else {
        console.data(&render::event_row(event))
    }
}

pub(crate) async fn run_records(
    command: RecordCommand,
    context: &Context,
    console: &mut Console,
) -> Result<(), CliError> {
    let RecordCommand::List { instance, user, since, limit, csv } = command;
    let since = since.map(|text| since_time(&text, Timestamp::now())).transpose()?;
    let client = context.client()?;
    // A table is for looking at; what goes on to other programs is whole.
    let limit = if csv { Limit::whole(limit)? } else { Limit::of(limit, console)? };
    let records = client
        .record_list(instance.as_deref(), user.as_deref(), since.as_deref(), limit.rows)
        .await?;
    if csv {
        console.data(&render::records_csv(&records))?;
    } else if console.is_json() {
        console.json(&records)?;
    } else {
        let text = render::records(console, &records);
        console.data(&text)?;
    }
    limit.say_if_cut(console, records.len());
    Ok(())
}

/// RFC 3339, a date (its beginning in UTC), or how long ago; answers RFC 3339.
fn since_time(text: &str, now: Timestamp) -> Result<String, CliError> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    if let Ok(time) = format!("{text}T00:00:00Z").parse::<Timestamp>() {
        return Ok(time.to_string());
    }
    duration::parse(text)
        .ok()
        .and_then(|ago| SignedDuration::try_from(ago).ok())
        .and_then(|ago| now.checked_sub(ago).ok())
        .map(|time| time.to_string())
        .ok_or_else(|| {
            CliError::Usage(format!(
                "`{text}` is not a time: write it like 2026-01-31T12:00:00Z, 2026-01-31 or 2h"
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_reads_times_dates_and_lengths() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (text, time) in [
            ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
            ("2h", "2026-11-22T10:00:00Z"),
        ] {
            assert_eq!(since_time(text, now).unwrap(), time);
        }
        assert!(since_time("yesterday", now).is_err());
    }
}
