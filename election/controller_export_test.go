package election

// ApplyCommand gives the simulation the real rule of the replicated state.
var ApplyCommand = apply

// ParseSyncSetting reads what SyncRule.Setting wrote.
var ParseSyncSetting = parseSyncSetting

// FenceHolds is the voters' rule of what fences the old primary.
var FenceHolds = fenceHolds
