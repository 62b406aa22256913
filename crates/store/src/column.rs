//! Between rows and words of the model: every stored value is checked when it is read back.

use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{Decode, Row, Sqlite, Type};

use larder_model::Timestamp;

use crate::{Result, StoreError};

/// The column as the database gives it.
pub(crate) fn get<'r, T>(row: &'r SqliteRow, column: &'static str) -> Result<T>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
{
    row.try_get(column)
        .map_err(|cause| StoreError::corrupt(format!("column `{column}` cannot be read: {cause}")))
}

/// A text column that is an id, a name or the like.
pub(crate) fn parsed<T>(row: &SqliteRow, column: &'static str) -> Result<T>
where
    T: FromStr<Err: Display>,
{
    parse(column, get(row, column)?)
}

/// The same for a column that may be empty.
pub(crate) fn parsed_option<T>(row: &SqliteRow, column: &'static str) -> Result<Option<T>>
where
    T: FromStr<Err: Display>,
{
    get::<Option<&str>>(row, column)?.map(|text| parse(column, text)).transpose()
}

fn parse<T: FromStr<Err: Display>>(column: &'static str, text: &str) -> Result<T> {
    text.parse().map_err(|cause| StoreError::corrupt(format!("column `{column}`: {cause}")))
}

/// A BIGINT column that is never negative.
pub(crate) fn unsigned<T: TryFrom<i64>>(row: &SqliteRow, column: &'static str) -> Result<T> {
    let value: i64 = get(row, column)?;
    T::try_from(value)
        .map_err(|_| StoreError::corrupt(format!("column `{column}` holds the number {value}")))
}

pub(crate) fn time(row: &SqliteRow, column: &'static str) -> Result<Timestamp> {
    get(row, column).map(Timestamp)
}

pub(crate) fn time_option(row: &SqliteRow, column: &'static str) -> Result<Option<Timestamp>> {
    Ok(get::<Option<i64>>(row, column)?.map(Timestamp))
}

/// A number for a BIGINT column. Counters never get near the end of the range.
pub(crate) fn big(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// JSON for a TEXT column. `what` names the thing in the error; its content is not repeated.
pub(crate) fn to_json<T: Serialize + ?Sized>(what: &'static str, value: &T) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|cause| StoreError::corrupt(format!("{what} cannot be written: {cause}")))
}

/// A TEXT column with JSON in it.
pub(crate) fn json<T: DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T> {
    from_json(column, get(row, column)?)
}

/// The same for a column that may be empty.
pub(crate) fn json_option<T: DeserializeOwned>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<T>> {
    get::<Option<&str>>(row, column)?.map(|text| from_json(column, text)).transpose()
}

fn from_json<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|cause| StoreError::corrupt(format!("column `{column}`: {cause}")))
}

/// The one word by which serde writes a plain enum's variant.
pub(crate) fn to_word<T: Serialize>(what: &'static str, value: &T) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => Ok(word),
        _ => Err(StoreError::corrupt(format!("{what} is not one word"))),
    }
}

/// A TEXT column with such a word.
pub(crate) fn word<T: DeserializeOwned>(row: &SqliteRow, column: &'static str) -> Result<T> {
    from_word(column, get(row, column)?)
}

/// The same for a column that may be empty.
pub(crate) fn word_option<T: DeserializeOwned>(
    row: &SqliteRow,
    column: &'static str,
) -> Result<Option<T>> {
    get::<Option<&str>>(row, column)?.map(|text| from_word(column, text)).transpose()
}

fn from_word<T: DeserializeOwned>(column: &'static str, text: &str) -> Result<T> {
    serde_json::from_value(serde_json::Value::String(text.to_owned()))
        .map_err(|cause| StoreError::corrupt(format!("column `{column}`: {cause}")))
}
