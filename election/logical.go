package election

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"holdfast/pgwire"
)

// LogicalSlot is a logical replication slot as its server shows it.
type LogicalSlot struct {
	Name string `json:"name"`
	// Failover tells that PostgreSQL (17 and newer) copies it to standbys.
	Failover bool `json:"failover,omitempty"`
	// Synced tells that it is a standby's copy of the primary's, or was before a promotion.
	Synced bool `json:"synced,omitempty"`
	// Temporary tells, on a standby, that the copy cannot be promoted yet: the standby lacks WAL
	// or catalog rows from before the position that the slot needs.
	Temporary bool `json:"temporary,omitempty"`
	// Bad tells why nobody can decode from it any more; empty if somebody can.
	Bad string `json:"bad,omitempty"`
	// LSN is up to where its consumer has confirmed.
	LSN pgwire.LSN `json:"lsn,omitempty"`
}

// logicalMax bounds the logical slots that a server is asked for and that an intent names.
const logicalMax = 100

// slotMissing tells why a member that holds these slots could not serve that slot's consumer as
// the primary; empty if it could (DESIGN.md I73).
func slotMissing(have []LogicalSlot, name string) string {
	i := slices.IndexFunc(have, func(s LogicalSlot) bool { return s.Name == name })
	switch {
	case i < 0:
		return "there is no copy"
	case have[i].Bad != "":
		return "the copy is invalid: " + have[i].Bad
	case have[i].Temporary:
		return "the copy is not complete: it waits for the slot's consumer to confirm more"
	case !have[i].Synced:
		return "a slot of its own has the name"
	}
	return ""
}

// failoverSlots are those that are to survive a change of the primary.
func failoverSlots(have []LogicalSlot) []LogicalSlot {
	return slices.DeleteFunc(slices.Clone(have), func(s LogicalSlot) bool {
		return !s.Failover || s.Bad != ""
	})
}

// slotsUntold are the names of the slots that a primary has, and that are to survive, which its
// report does not tell of yet.
func slotsUntold(told, have []LogicalSlot) []string {
	told = failoverSlots(told)
	var out []string
	for _, s := range failoverSlots(have) {
		if !slices.ContainsFunc(told, func(t LogicalSlot) bool { return t.Name == s.Name }) {
			out = append(out, s.Name)
		}
	}
	return out
}

// slotsOf are the slots of the lock's holder, as it last told, and those of which some standby has
// a copy: a new leader may never have heard the holder. A report of any age counts.
func slotsOf(in Input) []LogicalSlot {
	if in.State.Lock == nil {
		return nil
	}
	var out []LogicalSlot
	add := func(s LogicalSlot) {
		if !slices.ContainsFunc(out, func(o LogicalSlot) bool { return o.Name == s.Name }) {
			out = append(out, s)
		}
	}
	for _, o := range in.Observations {
		if o.Node == in.State.Lock.Holder {
			for _, s := range o.Member.Logical {
				add(LogicalSlot{Name: s.Name, Failover: s.Failover, Bad: s.Bad, LSN: s.LSN})
			}
		}
	}
	for _, o := range in.Observations {
		for _, s := range o.Member.Logical {
			if o.Node != in.State.Lock.Holder && s.Synced {
				add(LogicalSlot{Name: s.Name, Failover: true})
			}
		}
	}
	slices.SortFunc(out, func(a, b LogicalSlot) int { return cmp.Compare(a.Name, b.Name) })
	return out[:min(len(out), logicalMax)]
}

// slotsLacking counts, for each standby, the slots that would be lost with its promotion.
func slotsLacking(obs []Observation, slots []LogicalSlot) map[string]int {
	out := map[string]int{}
	wanted := failoverSlots(slots)
	for _, o := range obs {
		for _, s := range wanted {
			if slotMissing(o.Member.Logical, s.Name) != "" {
				out[o.Node]++
			}
		}
	}
	return out
}

// slotsLost says what became of the old primary's slots with the promotion of a member that has
// these, a line for each that is lost or behind.
func slotsLost(old []LogicalSlot, to string, have []LogicalSlot) []string {
	var out []string
	for _, s := range old {
		why := slotMissing(have, s.Name)
		i := slices.IndexFunc(have, func(h LogicalSlot) bool { return h.Name == s.Name })
		switch {
		case s.Bad != "":
		case why != "" && !s.Failover:
			out = append(out, fmt.Sprintf("logical slot %s is lost: it was no failover slot",
				s.Name))
		case why != "":
			out = append(out, fmt.Sprintf("logical slot %s is lost: on %s %s", s.Name, to, why))
		case have[i].LSN < s.LSN:
			out = append(out, fmt.Sprintf("logical slot %s goes on %s behind the last position that"+
				" the old primary told: a consumer that keeps no position gets that again", s.Name,
				byteText(s.LSN-have[i].LSN)))
		}
	}
	return out[:min(len(out), evidenceMax)]
}

// SlotReadiness tells of a logical slot of the primary which standbys could go on with it.
type SlotReadiness struct {
	Slot     string `json:"slot"`
	Failover bool   `json:"failover"`
	// Bad tells why it cannot be used on the primary itself.
	Bad string `json:"bad,omitempty"`
	// Ready are the standbys that would go on with it; Missing says why each other one would not.
	Ready   []string          `json:"ready,omitempty"`
	Missing map[string]string `json:"missing,omitempty"`
}

// LogicalReadiness lists the primary's logical slots with the standbys that are ready for them.
func LogicalReadiness(s *State, obs []Observation) []SlotReadiness {
	if s.Lock == nil {
		return nil
	}
	var out []SlotReadiness
	byNode := map[string][]LogicalSlot{}
	for _, o := range obs {
		byNode[o.Node] = o.Member.Logical
	}
	for _, slot := range byNode[s.Lock.Holder] {
		r := SlotReadiness{Slot: slot.Name, Failover: slot.Failover, Bad: slot.Bad}
		for _, name := range otherNames(s.Members, s.Lock.Holder) {
			if !slot.Failover {
				break
			}
			why := slotMissing(byNode[name], slot.Name)
			if why == "" {
				r.Ready = append(r.Ready, name)
				continue
			}
			if r.Missing == nil {
				r.Missing = map[string]string{}
			}
			r.Missing[name] = why
		}
		out = append(out, r)
	}
	return out
}

// String is the readiness in a line for people.
func (r SlotReadiness) String() string {
	switch {
	case r.Bad != "":
		return "logical slot " + r.Slot + " is invalid: " + r.Bad
	case !r.Failover:
		return "logical slot " + r.Slot + " is no failover slot: a change of the primary ends it"
	}
	text := "logical slot " + r.Slot + ": ready on " + cmp.Or(strings.Join(r.Ready, ", "), "none")
	for _, name := range sortedKeys(r.Missing) {
		text += "; " + name + ": " + r.Missing[name]
	}
	return text
}

// slotNames joins the names of slots for people.
func slotNames(slots []LogicalSlot) string {
	var names []string
	for _, s := range slots {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

// standbySlots are the slots that logical decoding waits for on a primary: those of the standbys
// by which its commits are acknowledged, or, where they wait for nobody, of those that stream now.
// Whoever is promoted then has what a consumer was sent (DESIGN.md I74). Only slots that exist are
// named: decoding from a failover slot fails as long as one of them does not.
func standbySlots(setting string, members []Member, streaming, exist []string) []string {
	want := streaming
	if r, ok := parseSyncSetting(setting); ok && len(r.Names) > 0 {
		want = r.Names
	}
	var out []string
	for _, m := range members {
		slot := SlotName(m.Name)
		if slices.Contains(want, m.Name) && slices.Contains(exist, slot) {
			out = append(out, slot)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
