package election_test

import (
	"strings"
	"testing"
)

// TestSimulationFindsBugs shows that the invariants bite.
func TestSimulationFindsBugs(t *testing.T) {
	defer oneThread()()
	want := map[simBug]string{
		bugFewRecruits:   "acknowledged commits lost",
		bugTargetLate:    "the durable target is",
		bugIgnoresPledge: "below its pledge",
		bugSameEpoch:     "clients use",
		bugNoEndorsement: "clients read under epoch",
		bugNoRecord:      "acknowledged commits lost",
		bugMaintenance:   "by itself in maintenance",
		bugAnyone:        "an operator asked for",
		bugNoStop:        "that was asked for ends with",
		bugWaives:        "is endorsed",
		bugSimLateXid:    "is told committed",
		bugSimWidened:    "acknowledged commits lost",
		bugSimFromSend:   "is endorsed",
		bugSimFromAnswer: "is endorsed",
		bugSimNoSilence:  "is endorsed",
		bugSimForgets:    "is endorsed",
		bugSimRelease:    "is endorsed",
		bugSimShort:      "is endorsed",
		bugSimLostDisk:   "is endorsed",
		bugSimNoBound:    "is lost under",
		bugSimNearest:    "is chosen under epoch",
		bugSimWitness:    "has no PostgreSQL and is ordered",
		bugSimNoFollow:   "is ordered to follow",
		bugSimDisk:       "nobody takes over",
		bugSimNoSlots:    "without a slot for",
		bugSimSlotOnce:   "has no slot for",
		bugSimSlotPast:   "in spite of its slot",
		bugSimOver:       "though that is over",
		bugSimStarts:     "is started by an order of",
		bugSimAskedAnew:  "is carried out 2 times",
		bugSimOldReport:  "though it runs",
	}
	for bug, text := range want {
		t.Run(strings.ReplaceAll(string(bug), " ", "_"), func(t *testing.T) {
			for i := range 4000 {
				wrong, _, _, _ := runSim(t, uint64(1+i), bug)
				for _, line := range wrong {
					if strings.Contains(line, text) {
						t.Logf("found in schedule %d: %s", i+1, line)
						return
					}
				}
			}
			t.Errorf("not found: %s", bug)
		})
	}
}
