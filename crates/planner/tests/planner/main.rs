//! Tests of the planner in a small pure world; every plan made here is linted.

mod bus;
mod chains;
mod chaos;
mod clusters;
mod create;
mod delete;
mod expose;
mod heal;
mod operations;
mod parameters;
mod rules;
mod scale;
mod scenarios;
mod world;
