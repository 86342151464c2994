//! Arbitrary bytes as a launch plan: refused, or read into a plan whose own text gives the same plan again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use starter::plan::LaunchPlan;

fuzz_target!(|text: &[u8]| {
    if let Ok(plan) = LaunchPlan::from_text(text) {
        let written = plan.to_text();
        assert_eq!(LaunchPlan::from_text(&written).as_ref(), Ok(&plan));
        assert_eq!(LaunchPlan::from_text(&written).map(|again| again.to_text()), Ok(written));
        assert!(plan.connections() <= 256);
    }
});
