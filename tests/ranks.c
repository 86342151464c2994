/* What a rank sees: its number, how many there are, its user namespace, and whether it may copy from its neighbour's memory. */
#define _GNU_SOURCE
#include <mpi.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int rank, size, sum = 0;
    char name[64] = "?", value[16] = "", copy[16] = "";
    struct { long pid; char *address; } mine, theirs;

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    snprintf(value, sizeof value, "rank %d", rank);
    mine.pid = getpid();
    mine.address = value;
    MPI_Sendrecv(&mine, sizeof mine, MPI_BYTE, (rank + 1) % size, 0,
                 &theirs, sizeof theirs, MPI_BYTE, (rank + size - 1) % size, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    struct iovec here = {copy, sizeof copy}, there = {theirs.address, sizeof copy};
    ssize_t copied = process_vm_readv(theirs.pid, &here, 1, &there, 1, 0);
    MPI_Barrier(MPI_COMM_WORLD);
    ssize_t length = readlink("/proc/self/ns/user", name, sizeof name - 1);
    if (length > 0)
        name[length] = 0;
    printf("rank %d of %d sum %d copied %s namespace %s\n", rank, size, sum, copied > 0 ? copy : "nothing", name);
    fflush(stdout);
    MPI_Finalize();
    return 0;
}
