/* Two ranks send a message to and fro, for every size; the first prints `bytes nanoseconds` for one way.
   Of several batches the fastest counts: what else the machine does only ever makes one slower. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LARGEST = 4 << 20, BATCHES = 9 };

int main(int argc, char **argv)
{
    int rank, size;
    char *buffer = malloc(LARGEST);

    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    if (size != 2 || !buffer)
        MPI_Abort(MPI_COMM_WORLD, 1);
    memset(buffer, rank, LARGEST);
    for (int bytes = 1; bytes <= LARGEST; bytes *= 4) {
        int times = bytes <= 16384 ? 1000 : bytes <= 262144 ? 100 : 20;
        double best = 1e9;
        for (int batch = 0; batch < BATCHES; batch++) {
            MPI_Barrier(MPI_COMM_WORLD);
            double start = MPI_Wtime();
            for (int i = 0; i < times; i++) {
                if (rank == 0) {
                    MPI_Send(buffer, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD);
                    MPI_Recv(buffer, bytes, MPI_BYTE, 1, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                } else {
                    MPI_Recv(buffer, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
                    MPI_Send(buffer, bytes, MPI_BYTE, 0, 0, MPI_COMM_WORLD);
                }
            }
            double one_way = (MPI_Wtime() - start) / times / 2;
            if (one_way < best)
                best = one_way;
        }
        if (rank == 0)
            printf("%d %.0f\n", bytes, best * 1e9);
    }
    MPI_Finalize();
    return 0;
}
