package election

// Phases of a change, as CommitLock.PhasesMS names them.
const (
	phaseDetect    = "detect"
	phaseIntent    = "intent"
	phaseEndorse   = "endorse"
	phaseRecruit   = "recruit"
	phaseStop      = "stop"
	phaseChoose    = "choose"
	phasePromote   = "promote"
	phaseStart     = "start"
	phaseBootstrap = "bootstrap"
	phaseRepoint   = "repoint"
	phaseCommit    = "commit"
	// phaseTotal is from the last sign of life, or the request, to the entry of the lock;
	// some of the phases overlap.
	phaseTotal = "total"
)

// PhaseNames lists the phases of a change in the order in which they happen; which of them occur
// depends on its kind.
func PhaseNames() []string {
	return []string{
		phaseDetect, phaseIntent, phaseEndorse, phaseRecruit, phaseStop,
		phaseChoose, phasePromote, phaseStart, phaseBootstrap, phaseRepoint, phaseTotal,
	}
}
