//! What every store has to do, rule by rule, and what the SQLite store has to do besides.
//!
//! A rule is a function over a [`Bench`], which opens and reopens a store and checks after every verb
//! that the counters equal the rows and that the logs are dense. [`contract!`] lists the rules once; a
//! store joins with one line.

mod bench;
mod claims;
mod disk;
mod keys;
mod lists;
mod logs;
mod open;
mod payloads;
mod purges;
mod reopen;
mod retries;
mod submits;
mod tail;
mod times;

pub(crate) use bench::connect;

/// Runs every rule on a store: `contract!(name: backend)`.
macro_rules! contract {
    ($store:ident: $backend:expr) => {
        contract!($store: $backend;
            submits::what_was_submitted_is_found_again,
            submits::a_refused_change_fails_alone,
            submits::replies_stand_in_the_order_of_the_entries,
            submits::a_group_sees_what_its_earlier_entries_did,
            submits::a_cancel_that_changes_nothing_stores_nothing,
            submits::a_life_from_submit_to_result_is_stored_step_by_step,
            submits::another_tenant_sees_and_changes_nothing,
            submits::two_tenants_may_have_a_job_of_the_same_id,
            keys::the_same_key_and_request_give_the_same_job,
            keys::the_same_key_with_another_request_is_refused,
            keys::a_key_used_twice_in_one_group_makes_one_job,
            keys::a_key_belongs_to_its_tenant,
            keys::a_key_is_free_again_once_its_job_is_purged,
            keys::keys_are_compared_byte_by_byte,
            claims::claims_go_by_priority_then_time_then_id,
            claims::lanes_do_not_touch_each_other,
            claims::a_claim_takes_no_more_than_its_places,
            claims::what_the_group_touched_is_not_claimed_from_its_lane,
            claims::a_handed_over_job_is_claimed_in_the_commit_that_stores_it,
            claims::a_claim_brings_input_and_checkpoint,
            claims::a_retry_waits_behind_what_was_there_before_it,
            payloads::payloads_come_back_byte_by_byte,
            payloads::a_mebibyte_goes_in_and_out,
            payloads::labels_keys_and_errors_keep_every_character,
            payloads::output_and_log_lines_keep_every_character,
            payloads::a_checkpoint_takes_the_place_of_the_one_before,
            times::due_jobs_come_earliest_first_and_say_what_is_next,
            times::ended_leases_are_found_and_others_are_not,
            lists::a_list_is_newest_first_in_pages,
            lists::filters_hold_together,
            lists::pages_together_are_what_a_look_at_every_job_gives,
            lists::a_job_that_is_there_throughout_is_listed_once,
            lists::a_list_looks_at_no_more_jobs_than_it_may,
            logs::a_log_is_read_from_any_place,
            logs::a_log_is_read_within_limits_of_events_and_bytes,
            logs::a_log_stays_dense_across_segments,
            purges::only_what_is_finished_is_purged,
            purges::a_purged_job_leaves_nothing_behind,
            purges::the_front_of_a_log_goes_and_its_last_event_stays,
            purges::a_long_log_goes_in_parts_and_its_job_at_once,
            purges::what_has_no_room_in_a_transaction_is_left_for_the_next,
            purges::the_front_of_a_long_log_goes_in_parts,
            retries::a_retry_is_the_same_job_but_for_what_was_its_own,
            retries::a_job_is_retried_once_and_asking_again_answers_the_same,
            retries::only_what_is_over_without_a_result_is_retried,
            retries::a_job_whose_retry_was_removed_is_not_retried_again,
            retries::a_retry_finds_room_among_what_waits_or_changes_nothing,
            reopen::what_was_answered_outlives_a_crash,
            reopen::what_was_answered_outlives_a_close,
            reopen::the_secret_is_kept,
            reopen::a_row_changed_behind_the_writer_fails_its_group_alone,
            reopen::a_waiting_row_changed_behind_the_writer_is_claimed_by_the_next_group,
            reopen::what_is_claimed_out_of_a_long_queue_has_its_own_input,
        );
    };
    ($store:ident: $backend:expr; $($room:ident::$rule:ident),* $(,)?) => {
        mod $store {
            use super::*;
            $(
                #[tokio::test]
                async fn $rule() {
                    $room::$rule(bench::Bench::new($backend).await).await;
                }
            )*
        }
    };
}

contract!(sqlite: bench::Sqlite::new());
