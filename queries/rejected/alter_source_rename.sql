-- error: ALTER SOURCE ... RENAME is not supported
ALTER SOURCE ad_events RENAME TO events;
