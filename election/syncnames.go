package election

import (
	"sort"
	"strconv"
	"strings"
)

// The synchronous replication modes.
const (
	SyncOff    = "off"    // commits wait for no standby
	SyncQuorum = "quorum" // commits wait for one of all standbys, from three members on
)

// syncQuorumWidth is W of "ANY W of N": how many standbys a commit waits for.
const syncQuorumWidth = 1

// syncMembersMin is the number of data members from which on the quorum mode waits: with two, the
// loss of the one standby would stop all writes.
const syncMembersMin = 3

// DataMembers returns the members that have a PostgreSQL, sorted by name.
func DataMembers(members []Member) []Member {
	var out []Member
	for _, m := range members {
		if m.Postgres != "" {
			out = append(out, m)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// SyncSet returns the names of the standbys that a commit on primary may wait for, sorted; nil if
// commits wait for none.
func SyncSet(mode string, members []Member, primary string) []string {
	data := DataMembers(members)
	if mode != SyncQuorum || len(data) < syncMembersMin {
		return nil
	}
	var names []string
	for _, m := range data {
		if m.Name != primary {
			names = append(names, m.Name)
		}
	}
	return names
}

// SyncNames returns synchronous_standby_names for a primary; empty if commits wait for none.
func SyncNames(mode string, members []Member, primary string) string {
	names := SyncSet(mode, members, primary)
	if len(names) == 0 {
		return ""
	}
	quoted := make([]string, len(names))
	for i, n := range names {
		quoted[i] = `"` + strings.ReplaceAll(n, `"`, `""`) + `"`
	}
	return "ANY " + strconv.Itoa(syncQuorumWidth) + " (" + strings.Join(quoted, ",") + ")"
}

// RecruitsNeeded returns how many of the n standbys, of which each commit waited for w, must have
// stopped streaming so that no further commit can be acknowledged and one of them has every
// acknowledged commit (DESIGN 4).
func RecruitsNeeded(n, w int) int {
	return n - w + 1
}
