package election

// Phases of a change, as CommitLock.PhasesMS names them.
const (
	phaseDetect     = "detect"
	phaseIntent     = "intent"
	phaseCheckpoint = "checkpoint"
	phaseEndorse    = "endorse"
	phaseRecruit    = "recruit"
	phaseStop       = "stop"
	phaseChoose     = "choose"
	phasePromote    = "promote"
	phaseStart      = "start"
	phaseBootstrap  = "bootstrap"
	phaseRepoint    = "repoint"
)

// PhaseNames lists the phases of a change in the order in which they happen; which of them occur
// depends on its kind.
func PhaseNames() []string {
	return []string{
		phaseDetect, phaseCheckpoint, phaseIntent, phaseEndorse, phaseRecruit, phaseStop,
		phaseChoose, phasePromote, phaseStart, phaseBootstrap, phaseRepoint,
	}
}
