//! What the store promises, through its public methods, on real files.

mod catalogue;
mod changes;
mod clusters;
mod crash;
mod events;
mod instances;
mod nodes;
mod opening;
mod operations;
mod people;
mod retention;
mod rows;
mod secrets;
mod support;
