package election

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// SyncDegradeLeast is the least time after which a standby that is away is given up: below it a
// restart of its server would count.
const SyncDegradeLeast = time.Second

// validateSync says everything that is wrong with the sync set's configuration.
func (c Config) validateSync() []error {
	var errs []error
	if !slices.Contains(SyncModes(), c.SyncMode) {
		errs = append(errs, fmt.Errorf("synchronous.mode: %q is not one of %s", c.SyncMode,
			strings.Join(SyncModes(), ", ")))
	}
	standbys := len(DataMembers(c.Nodes)) - 1
	isCounted := c.SyncMode == SyncQuorum || c.SyncMode == SyncStrict
	if c.SyncWait < 1 || isCounted && c.SyncWait > max(standbys, 1) {
		errs = append(errs, fmt.Errorf("synchronous.standbys: %d is not between 1 and the number"+
			" of standbys, %d", c.SyncWait, max(standbys, 1)))
	}
	if c.SyncDegradeAfter < SyncDegradeLeast {
		errs = append(errs, fmt.Errorf("synchronous.degrade_after: %s is less than %s",
			c.SyncDegradeAfter, SyncDegradeLeast))
	}
	return errs
}
