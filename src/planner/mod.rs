//! Statement + catalog → logical plan → [`stream_plan::StreamPlan`].

pub mod stream_plan;
