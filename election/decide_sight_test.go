package election_test

import (
	"fmt"
	"strings"
	"time"

	"holdfast/election"
)

// situationSight adds to a report what the node, and the sidecars that it lends to, cannot reach:
// blind=DURATION, reaches=NAME,NAME and sidecars=CUT/TOTAL[:NAME=REACH,...].
func situationSight(r *election.Report, kv map[string]string) (err error) {
	if s, ok := kv["blind"]; ok {
		if r.BlindFor, err = time.ParseDuration(s); err != nil {
			return err
		}
	}
	if s, ok := kv["reaches"]; ok {
		r.Reaches = strings.Split(s, ",")
	}
	s, ok := kv["sidecars"]
	if !ok {
		return nil
	}
	counts, reach, _ := strings.Cut(s, ":")
	b := &election.BorrowerView{Longest: 20 * time.Second, Reach: map[string]int{}}
	if _, err := fmt.Sscanf(counts, "%d/%d", &b.CutOff, &b.Total); err != nil {
		return fmt.Errorf("sidecars=%s: %w", s, err)
	}
	for _, one := range strings.FieldsFunc(reach, func(r rune) bool { return r == ',' }) {
		name, n, _ := strings.Cut(one, "=")
		b.Reach[name] = int(number(n))
	}
	r.Borrowers = b
	return nil
}
