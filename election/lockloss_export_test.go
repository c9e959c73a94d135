package election

import "time"

// LossReserveForTest is the time in which the clients of a lost lease must be gone.
var LossReserveForTest = lossReserve

// PatientForTest lets the look for receivers before a stop take as long as the lease does; restore
// ends that.
func PatientForTest() (restore func()) {
	old := receiversMax
	receiversMax = time.Hour
	return func() { receiversMax = old }
}
