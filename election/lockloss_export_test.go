package election

// LossReserveForTest is the time in which the clients of a lost lease must be gone.
var LossReserveForTest = lossReserve
