//! The daemon's settings as the manager's.

use crate::manager::ManagerSettings;
use crate::settings::Settings;
use std::time::Duration;

/// Every field is a setting, but for the vault.
pub(super) fn manager_settings(settings: &Settings) -> ManagerSettings {
    let (timeouts, manager) = (settings.timeouts, settings.manager);
    ManagerSettings {
        heartbeat: Duration::from_millis(timeouts.heartbeat_ms),
        down_after: Duration::from_millis(timeouts.node_down_ms),
        takeover_grace: Duration::from_millis(manager.takeover_grace_ms),
        disruption_hold: Duration::from_millis(manager.disruption_hold_ms),
        return_window: Duration::from_millis(manager.return_window_ms),
        join_grace: Duration::from_millis(manager.join_grace_ms),
        replace_wait: Duration::from_millis(manager.replace_wait_ms),
        stop_hold: Duration::from_millis(manager.stop_hold_ms),
        stop_pause: Duration::from_millis(manager.stop_pause_ms),
        node_lag: Duration::from_millis(manager.node_lag_ms),
        orphan_after: Duration::from_secs(manager.orphan_after_s),
        rollback_window: Duration::from_secs(manager.rollback_window_s),
        vault: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_the_managers_own() {
        assert_eq!(manager_settings(&Settings::default()), ManagerSettings::default());
    }

    #[test]
    fn each_setting_of_the_file_reaches_the_manager() {
        let path = std::env::temp_dir().join(format!("skep-manager-settings-{}.toml", std::process::id()));
        let text = "[timeouts]\nheartbeat_ms = 400\nnode_down_ms = 3000\n\
            [manager]\ntakeover_grace_ms = 9000\ndisruption_hold_ms = 8000\nreturn_window_ms = 7000\n\
            join_grace_ms = 30000\nreplace_wait_ms = 90000\nstop_hold_ms = 7000\nstop_pause_ms = 50\nnode_lag_ms = 45000\norphan_after_s = 60\n\
            rollback_window_s = 5\n";
        std::fs::write(&path, text).unwrap();
        let settings = Settings::read(Some(&path));
        std::fs::remove_file(&path).unwrap();
        let expected = ManagerSettings {
            heartbeat: Duration::from_millis(400),
            down_after: Duration::from_secs(3),
            takeover_grace: Duration::from_secs(9),
            disruption_hold: Duration::from_secs(8),
            return_window: Duration::from_secs(7),
            join_grace: Duration::from_secs(30),
            replace_wait: Duration::from_secs(90),
            stop_hold: Duration::from_secs(7),
            stop_pause: Duration::from_millis(50),
            node_lag: Duration::from_secs(45),
            orphan_after: Duration::from_mins(1),
            rollback_window: Duration::from_secs(5),
            vault: None,
        };
        assert_eq!(manager_settings(&settings.unwrap()), expected);
    }
}
