package election

import (
	"encoding/binary"
	"slices"
	"strings"
	"time"
)

// fleet is what the sidecars that borrow from this node tell of the primary: one entry each, that
// is forgotten with the loan. Pure; not safe for concurrent use.
type fleet struct {
	keep   int64 // how long an entry counts, in nanoseconds
	byName map[string]fleetEntry
}

type fleetEntry struct {
	at       int64
	epoch    uint64
	blindFor time.Duration
	reaches  string
}

func newFleet(t Timing) *fleet {
	return &fleet{keep: int64(t.Lease), byName: make(map[string]fleetEntry)}
}

// note takes what a sidecar says; one more than lesseesMax is not listened to.
func (f *fleet) note(now int64, r Renewal) {
	if _, known := f.byName[r.Lessee]; !known && len(f.byName) >= lesseesMax {
		return
	}
	f.byName[r.Lessee] = fleetEntry{now, r.Epoch, r.BlindFor, r.Reaches}
}

// forget takes a sidecar out that has given its loan back.
func (f *fleet) forget(name string) { delete(f.byName, name) }

// view counts those that were heard of within a lease. One that was blind under another epoch than
// the lock's says nothing about this one.
func (f *fleet) view(now int64, s *State, after time.Duration) *BorrowerView {
	var v BorrowerView
	for name, e := range f.byName {
		if now-e.at > f.keep {
			delete(f.byName, name)
			continue
		}
		v.Total++
		if after <= 0 || e.blindFor < after || e.epoch != lockEpoch(s) {
			continue
		}
		v.CutOff++
		v.Longest = max(v.Longest, e.blindFor)
		for _, name := range reachNames(e.reaches) {
			if slices.ContainsFunc(s.Members, func(m Member) bool { return m.Name == name }) {
				v.reached(name)
			}
		}
	}
	if v.Total == 0 {
		return nil
	}
	return &v
}

// reached counts one of those that are cut off and reach that member.
func (v *BorrowerView) reached(name string) {
	if v.Reach == nil {
		v.Reach = map[string]int{}
	}
	v.Reach[name]++
}

// A sidecar that is blind appends to its request, behind the byte of flags, for how long in tenths
// of a second, and the names that it reaches; what is beyond loanSightMax bytes is left out.
const (
	loanSightUnit = 100 * time.Millisecond
	loanSightMax  = 300
)

// appendLoanSight encodes what a blind borrower tells.
func appendLoanSight(b []byte, r Renewal) []byte {
	tenths := max(1, min(r.BlindFor/loanSightUnit, 1<<16-1))
	b = binary.BigEndian.AppendUint16(b, uint16(tenths))
	return append(b, r.Reaches[:min(len(r.Reaches), loanSightMax)]...)
}

// parseLoanSight decodes it; what is not whole is left out.
func parseLoanSight(p []byte, r *Renewal) {
	if len(p) < 2 {
		return
	}
	r.BlindFor = time.Duration(binary.BigEndian.Uint16(p)) * loanSightUnit
	if r.BlindFor > 0 {
		r.Reaches = string(p[2:min(len(p), 2+loanSightMax)])
	}
}

// reachText and reachNames are how the names of members travel in a Renewal: each ends in a
// comma, so that one that was cut short is none.
func reachText(names []string) string {
	var b strings.Builder
	for _, n := range names {
		b.WriteString(n + ",")
	}
	return b.String()
}

func reachNames(text string) []string {
	var out []string
	for n := range strings.SplitAfterSeq(text, ",") {
		if name, isWhole := strings.CutSuffix(n, ","); isWhole && len(out) < membersMax {
			out = append(out, name)
		}
	}
	return out
}
