// Package electiontest makes groups of nodes in one process for tests: certificates, free ports
// and agents that only pretend. It is imported by tests only.
package electiontest
